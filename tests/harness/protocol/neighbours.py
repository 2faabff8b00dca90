"""Who stands around the substations in the protocol's model: balancers, the gateway with its clients, the broker.

The sweep is the product's; what needs a broker or a load table is told anew, and names what it mirrors.
"""

import asyncio
import contextlib
from collections import defaultdict

from harness.protocol.clockwork import Process
from harness.protocol.ledger import Connection
from harness.protocol.processes import BAYS, LEASE_S
from prometheus_client import CollectorRegistry

from balancer.metrics import BalancerMetrics
from balancer.sweeper import Sweeper
from services.errors import LedgerUnavailable
from services.ledger.dispatch import LedgerDispatch
from services.ledger.intake import LedgerIntake
from services.ledger.records import Assignment, Known
from services.ledger.states import Reason
from services.ledger.sweeping import LedgerSweeping
from services.messages import Hint

DISPATCH_EVERY_S = 0.5

_METRICS = BalancerMetrics(CollectorRegistry())


class Broker:
    """A queue for each substation; hints are lost, come late and come twice, and go back when their reader dies."""

    def __init__(self, timeline, rng):
        self._timeline = timeline
        self._rng = rng
        self._waiting = defaultdict(list)
        self._readers = defaultdict(list)
        self.loses = rng.choice((0, 0.1, 0.5))
        self.doubles = rng.choice((0, 0.1, 0.5))
        self.is_late = rng.choice((0, 0.2))

    def publish(self, substation, hints):
        copies = 0 if self._rng.random() < self.loses else 1 + (self._rng.random() < self.doubles)
        for _ in range(copies):
            pause_s = self._rng.uniform(0, 20) if self._rng.random() < self.is_late else self._rng.uniform(0, 0.05)
            self._timeline.after(pause_s, lambda: self.deliver(substation, hints))

    def deliver(self, substation, hints):
        if self._readers[substation]:
            self._rng.choice(self._readers[substation]).receive(substation, hints)
        else:
            self._waiting[substation].append(hints)

    def attach(self, substation, reader):
        self._readers[substation].append(reader)
        waiting, self._waiting[substation] = self._waiting[substation], []
        for hints in waiting:
            self.deliver(substation, hints)

    def detach(self, substation, reader, unsettled):
        if reader in self._readers[substation]:
            self._readers[substation].remove(reader)
        for hints in unsettled:
            self.deliver(substation, hints)


class Balancer(Process):
    """The product's sweep, and a dispatch that mirrors `balancer.dispatcher` on a table that may be wrong."""

    def __init__(self, world, name, clock):
        super().__init__(world.timeline, name, clock)
        self._rng = world.rng
        self._broker = world.broker
        self.connection = Connection(self, world.ledger, world.network, world.faults.crash_point)
        self.healthy_since_s = world.timeline.now_s
        self._dispatch = LedgerDispatch(self.connection)
        self.sweeper = Sweeper(LedgerSweeping(self.connection), _METRICS, asyncio.Event(), LEASE_S)
        self.start(self._serve())

    async def _serve(self):
        await asyncio.gather(self.sweeper.sweep_for_ever(), self._dispatch_for_ever())

    async def _dispatch_for_ever(self):
        while True:
            await asyncio.sleep(DISPATCH_EVERY_S)
            with contextlib.suppress(LedgerUnavailable):
                await self._dispatch_once()

    async def _dispatch_once(self):
        waiting = await self._dispatch.waiting_first(20, 0, [])
        if not waiting:
            return
        registry = await self._dispatch.registry()
        room = {one.substation: 2 + BAYS for one in registry if one.has_lease or self._rng.random() < 0.1}
        known = [Known(one.substation, one.epoch, 0, 0) for one in registry]
        for taken in await self._dispatch.unseen(known):
            if taken.substation in room:
                room[taken.substation] -= 1
        chosen = []
        for one in waiting:
            best = max(room.items(), key=lambda place: (place[1], self._rng.random()), default=("", 0))
            if best[1] > 0:
                room[best[0]] -= 1
                chosen.append(Assignment(one.request_id, one.attempt, best[0]))
        changed = await self._dispatch.assign(chosen)
        for one in chosen:
            if one.request_id in changed:
                hints = [Hint(one.request_id, one.attempt + 1)]
                if self._rng.random() < 0.02:
                    await self._dispatch.give_back(hints, one.substation, Reason.UNROUTABLE)
                else:
                    self._broker.publish(one.substation, hints)


class Gateway(Process):
    """The gateway and its clients: they ask again until they are answered."""

    def __init__(self, world, clock):
        super().__init__(world.timeline, "gateway", clock)
        self.connection = Connection(self, world.ledger, world.network, world.faults.crash_point)
        self._intake = LedgerIntake(self.connection)
        self.accepted = set()

    def submit(self, request):
        self.run(lambda: self.loop.create_task(self._submit(request)))

    def withdraw(self, request_id):
        self.run(lambda: self.loop.create_task(self._withdraw(request_id)))

    async def _submit(self, request):
        while True:
            with contextlib.suppress(LedgerUnavailable):
                [answer] = await self._intake.accept([request])
                assert answer.request_id == request.request_id
                self.accepted.add(request.request_id)
                return
            await asyncio.sleep(1)

    async def _withdraw(self, request_id):
        with contextlib.suppress(LedgerUnavailable):
            await self._intake.withdraw(request_id)
