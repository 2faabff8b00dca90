"""A `substations` process in the protocol's model: the product's Host, Workers and Witness, started and stopped.

Only what needs a broker or a signal is told anew here, and names what it mirrors.
"""

import asyncio
import contextlib
from collections import defaultdict

from harness.protocol.clockwork import Process
from harness.protocol.ledger import Connection

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger.charging import LedgerCharging
from services.ledger.records import Registration
from services.ledger.tenancy import LedgerTenancy
from substations.heartbeat import GRANT_BEATS, Host
from substations.substation import Substation
from substations.witness import Witness
from substations.worker import Worker

LEASE_S, HEARTBEAT_S, TICK_S, SPEED = 5.0, 1.0, 0.2, 60
GRANT_S = round(GRANT_BEATS * HEARTBEAT_S * SPEED)
POWER_W, FLOOR_W, BAYS = 11_000, 1_380, 1
SETTLE_LAST_S, LAST_WORDS_S, LEDGER_PAUSE_S = 4.0, 3.0, 0.5


class SubstationProcess(Process):
    """A `substations` process; as a broken variant it releases its leases before its sessions stop."""

    def __init__(self, world, name, clock, kinds):
        super().__init__(world.timeline, name, clock)
        self._broker = world.broker
        self._releases_first = world.variant.releases_first
        self.connection = Connection(self, world.ledger, world.network, world.faults.crash_point)
        self.stopping = asyncio.Event()
        self.unsettled = defaultdict(list)
        self._arrived = {}
        self.workers = {}
        ledger = LedgerCharging(self.connection)
        for kind in kinds:
            one = Substation(
                id=kind.substation, rated_w=kind.rated_w, limit_w=kind.limit_w, connectors=kind.connectors,
                bays=kind.bays, speed=SPEED, ticked_at_s=clock.reading_s(), grant_s=GRANT_S, floor_w=FLOOR_W,
            )  # fmt: skip
            witness = MemoryWitness(self, world.judge)
            self.workers[one.id] = Worker(one, ledger, witness=witness)
        self.host = Host(
            self.workers, kinds, LedgerTenancy(self.connection),
            holder=f"{name} #{name}", lease_s=LEASE_S, heartbeat_s=HEARTBEAT_S,
        )  # fmt: skip
        self.when_over.append(self._detach)
        self.start(self._serve())

    @property
    def hosted(self):
        return set(self.workers)

    def receive(self, substation, hints):
        self.unsettled[substation].append(hints)
        self.run(self._arrived[substation].set)

    def _detach(self):
        for one in self.workers:
            self._broker.detach(one, self, self.unsettled.pop(one, []))

    async def _serve(self):
        """Mirrors `substations.service.serve`, with `services.lifecycle` around it."""
        ticking = [self.loop.create_task(one.tick_for_ever(TICK_S)) for one in self.workers.values()]
        beating = self.loop.create_task(self.host.beat_for_ever())
        stopped = self.loop.create_task(self.stopping.wait())
        held = self.loop.create_task(self.host.all_held.wait())
        await asyncio.wait({held, stopped, beating, *ticking}, return_when=asyncio.FIRST_COMPLETED)
        consuming = []
        if not stopped.done() and not beating.done():
            for one in self.workers:
                self._arrived[one] = asyncio.Event()
                consuming.append(self.loop.create_task(self._consume(one)))
                self._broker.attach(one, self)
            await asyncio.wait({stopped, beating, *ticking}, return_when=asyncio.FIRST_COMPLETED)
        await _cancel(consuming)
        self._detach()
        if self._releases_first:
            await self._settle_and_release()
            await asyncio.sleep(TICK_S * 3)
        await _cancel([*ticking, beating, held, stopped])
        await self._settle_and_release()

    async def _settle_and_release(self):
        """Mirrors `settle_and_release` there."""
        with contextlib.suppress(LedgerUnavailable, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                for worker in self.workers.values():
                    await worker.settle()
                await self.host.release()

    async def _consume(self, substation):
        """Mirrors `services.broker.settle.Consumer`: what has come is handled together, and acked after that."""
        settling = None
        try:
            while True:
                await self._arrived[substation].wait()
                self._arrived[substation].clear()
                settling = self.loop.create_task(self._settle(substation, list(self.unsettled[substation])))
                await asyncio.shield(settling)
        finally:
            if settling is not None:
                await asyncio.wait({settling}, timeout=SETTLE_LAST_S)
                settling.cancel()

    async def _settle(self, substation, batch):
        hints = list(dict.fromkeys(hint for hints in batch for hint in hints))
        while True:
            try:
                await self.workers[substation].take_in(hints)
            except LedgerUnavailable:
                await asyncio.sleep(LEDGER_PAUSE_S)
            else:
                break
        del self.unsettled[substation][: len(batch)]


async def _cancel(tasks):
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception) and not isinstance(outcome, Misconfigured):
            raise outcome


class MemoryWitness(Witness):
    """The product's witness, whose lines go to the judge."""

    def __init__(self, process, judge):
        self._process = process
        self._judge = judge
        self._seen, self._ticked_at_s = {}, 0.0

    def write(self, substation):
        self._judge.see_tick(self._process, substation)
        super().write(substation)

    def _append(self, substation, events):
        for key, event in sorted(events, key=lambda one: one[0]):  # the same in every run
            self._judge.see(self._process, substation, key, event)


def registration(substation, connectors, reach):
    """A substation whose limit reaches for a part of what its connectors can take; the less, the longer grants last."""
    limit_w = round(POWER_W * connectors * reach)
    return Registration(substation, None, limit_w, limit_w, connectors, BAYS, "http://127.0.0.1:1")
