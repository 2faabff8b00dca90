"""Dispatch: choose, reserve, assign by compare-and-set, publish to the substation's queue.

One function serves both ways into it: hints from the intake queue, and rows of the waiting room. A row stays assigned
where its message reaches no queue: the substation's heartbeat finds it.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.policies import Choice, NoRoom, PolicyName, choose
from balancer.reach import Reach
from balancer.watcher import Watcher
from services.broker import topology
from services.broker.publisher import Publisher
from services.clock import monotonic_s
from services.crash_points import crash_point
from services.errors import BrokerUnavailable, LedgerUnavailable, Unroutable
from services.ledger.dispatch import Dispatch
from services.ledger.records import Assignment, Waiting
from services.logs import get_logger
from services.messages import Hint

log = get_logger(__name__)

ROOM_BATCH = 500
MESSAGE_GRACE_MS = 1_500
"""How long a row may wait for its message before it is dispatched without one.

The waiting room is served at least once a second, so that a row without a message waits less than 3 s.
"""
ROOM_AWAITS_PUBLISH_S = 0.25
"""How long the waiting room waits for confirms before it is served on. A broker that is frozen must not hold it up."""


@dataclass(frozen=True, slots=True)
class _Dispatched:
    """What became of a batch: the hints to publish, by substation, and the zones that were full for somebody."""

    hints: Mapping[str, Sequence[Hint]] = field(default_factory=dict)
    full: set[str | None] = field(default_factory=set)
    """None: no zone has room for anybody."""


class Dispatcher:
    """Sends requests on their way; who finds no room waits in the ledger."""

    def __init__(
        self,
        ledger: Dispatch,
        table: LoadTable,
        watcher: Watcher,
        publisher: Publisher,
        metrics: BalancerMetrics,
        *,
        policy: PolicyName,
        rng: random.Random,
    ) -> None:
        self._ledger = ledger
        self._table = table
        self._watcher = watcher
        self._publisher = publisher
        self._metrics = metrics
        self._policy = policy
        self._rng = rng
        self._reach = Reach()
        self._waiting_zones: set[str | None] = {None}
        """Zones in which somebody waits; None: somebody whom any zone would suit. At start, one does not know."""
        self._came_to_wait: set[str | None] = set()
        """Zones in which somebody came to wait after the room was read last."""
        self._publishing: set[asyncio.Task[None]] = set()

    async def take_in(self, hints: Sequence[Hint]) -> None:
        """Handle hints from the intake; returns when each is assigned and published, or waits in the ledger."""
        newcomers = [] if None in self._waiting_zones else await self._ledger.waiting(hints)
        go_on = [one for one in newcomers if one.zone not in self._waiting_zones]
        if len(go_on) < len(newcomers) or not newcomers:
            # They take their place in the waiting room's order.
            self._came_to_wait.add(None)
            self._watcher.look_again.set()
        dispatched = await self._dispatch(go_on)
        # The room may have been served during the await, so the set is read only now.
        self._waiting_zones |= dispatched.full
        self._came_to_wait |= dispatched.full
        if dispatched.hints:
            await self._publish(dispatched.hints)

    async def serve_waiting_room_for_ever(self) -> None:
        """Serve the room after each refresh, and when somebody came to wait, until cancelled."""
        while True:
            await self._watcher.look_again.wait()
            self._watcher.look_again.clear()
            try:
                await self.serve_waiting_room()
            except LedgerUnavailable as error:
                log.warning("waiting_room_paused", cause=str(error))

    async def serve_waiting_room(self) -> None:
        """Dispatch the waiting requests, in the order of the waiting room; raises `LedgerUnavailable`."""
        self._came_to_wait = set()
        may_have_message = not self._waiting_zones and not self._watcher.is_broker_away
        waiting_zones = await self._dispatch_room(MESSAGE_GRACE_MS if may_have_message else 0)
        # A request that came to wait meanwhile may have arrived after the ledger was read.
        self._waiting_zones = waiting_zones | self._came_to_wait

    async def _dispatch_room(self, older_than_ms: int) -> set[str | None]:
        """Dispatch the room from its head, past the zones that are full; returns the zones in which some wait on."""
        full: set[str | None] = set()
        while None not in full:
            waiting = await self._ledger.waiting_first(ROOM_BATCH, older_than_ms, [one for one in full if one])
            dispatched = await self._dispatch(waiting)
            if dispatched.hints:
                await self._publish_behind(dispatched.hints)
            if len(waiting) < ROOM_BATCH:
                return full | dispatched.full
            if not dispatched.hints and dispatched.full <= full:
                # This page would come again: other tasks of this process, or other balancers, are at work on its rows.
                # Somebody may wait behind it; the next refresh of the load table has the room served again.
                return full | {None}
            full |= dispatched.full
        return full

    async def _dispatch(self, waiting: Sequence[Waiting]) -> _Dispatched:
        """Choose for each in order, and assign what finds room; nothing is published yet."""
        estimates = {one.substation: one for one in self._watcher.estimates()}
        chosen: list[tuple[Waiting, Choice]] = []
        avoided = self._reach.avoided(monotonic_s())
        full: set[str | None] = set()
        for one in waiting:
            if one.zone in full or self._table.is_reserved(one.request_id, one.attempt + 1):
                continue  # no room for its like, or another delivery of it is on its way through here
            started = time.perf_counter()
            decision = choose(self._policy, list(estimates.values()), one.power_max_w, one.zone, self._rng, avoided)
            self._metrics.decision_s.observe(time.perf_counter() - started)
            match decision:
                case Choice():
                    self._table.reserve(one.request_id, one.attempt + 1, decision.substation, one.power_max_w)
                    estimates[decision.substation] = self._watcher.estimate(decision.substation)
                    chosen.append((one, decision))
                case NoRoom():
                    full.add(one.zone)
                    if one.zone is None:
                        break  # nobody has room for anyone
        if not chosen:
            return _Dispatched(full=full)
        crash_point("balancer.chosen")
        return _Dispatched(await self._assign(chosen), full)

    async def _assign(self, chosen: Sequence[tuple[Waiting, Choice]]) -> Mapping[str, Sequence[Hint]]:
        """Write the choices; returns the hints of those that were written, by substation."""
        assignments = [
            Assignment(one.request_id, one.attempt, choice.substation, choice.explanation) for one, choice in chosen
        ]
        changed: set[str] = set()
        try:
            changed = await self._ledger.assign(assignments)
        finally:
            for one in assignments:
                if one.request_id in changed:
                    self._table.commit(one.request_id, one.attempt + 1)
                else:  # somebody was faster, or the ledger failed: then the next refresh tells
                    self._table.release(one.request_id, one.attempt + 1)
        crash_point("balancer.assigned")
        by_substation: dict[str, list[Hint]] = defaultdict(list)
        for one in assignments:
            if one.request_id in changed:
                by_substation[one.substation].append(Hint(one.request_id, one.attempt + 1))
                self._metrics.assignments.labels(one.substation, self._policy).inc()
        return by_substation

    async def _publish_behind(self, hints: Mapping[str, Sequence[Hint]]) -> None:
        """Publish, and wait only a little for the confirm, so that a late one does not hold up the waiting room."""
        publishing = asyncio.create_task(self._publish(hints))
        self._publishing.add(publishing)
        publishing.add_done_callback(self._publishing.discard)
        done, _ = await asyncio.wait({publishing}, timeout=ROOM_AWAITS_PUBLISH_S)
        for one in done:
            one.result()

    async def _publish(self, hints: Mapping[str, Sequence[Hint]]) -> None:
        """Publish to each substation's queue; what reaches none is left to the ledger, told and counted."""
        faults = await asyncio.gather(*(self._publish_to(one, hints[one]) for one in hints))
        crash_point("balancer.published")
        failed = {one: fault for one, fault in zip(hints, faults, strict=True) if fault is not None}
        for one in self._reach.note_reached(one for one in hints if one not in failed):
            log.info("substation_reached_again", substation=one)
        for one in failed:
            self._metrics.unreached.labels(one).inc(len(hints[one]))
        told = self._reach.note_failed({one: len(hints[one]) for one in failed}, monotonic_s())
        for one, requests in told.items():
            log.warning("substation_not_reached", substation=one, requests=requests, cause=str(failed[one]))

    async def _publish_to(self, substation: str, hints: Sequence[Hint]) -> Unroutable | BrokerUnavailable | None:
        # The rows stay assigned whatever comes of it. If they went back, they would be sent to the same substation at
        # once, because it stays the least loaded one.
        try:
            await self._publisher.publish_hints(topology.ASSIGNMENTS, substation, hints)
        except (Unroutable, BrokerUnavailable) as fault:
            return fault
        return None
