"""Dispatch: choose, reserve, assign by compare-and-set, publish to the substation's queue.

One function serves both ways into it: hints from the intake queue, and rows of the waiting room.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Sequence

from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.policies import Choice, NoRoom, PolicyName, choose
from balancer.watcher import Watcher
from services.broker import topology
from services.broker.publisher import Publisher
from services.crash_points import crash_point
from services.errors import BrokerUnavailable, LedgerUnavailable, Unroutable
from services.ledger.dispatch import Dispatch
from services.ledger.records import Assignment, Waiting
from services.ledger.states import Reason
from services.logs import get_logger
from services.messages import Hint

log = get_logger(__name__)

ROOM_BATCH = 500
MESSAGE_GRACE_MS = 2_000
"""How long a row may wait for its message before it is dispatched without one."""


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
        self._waiting_zones: set[str | None] = {None}
        """Zones in which somebody waits; None: somebody whom any zone would suit. At start, one does not know."""
        self._deferred = 0

    async def take_in(self, hints: Sequence[Hint]) -> None:
        """Handle hints from the intake; returns when each is assigned and published, or waits in the ledger."""
        newcomers = [] if None in self._waiting_zones else await self._ledger.waiting(hints)
        go_on = [one for one in newcomers if one.zone not in self._waiting_zones]
        if len(go_on) < len(newcomers) or not newcomers:
            # They take their place in the waiting room's order.
            self._deferred += 1
            self._watcher.look_again.set()
        self._waiting_zones |= await self._dispatch(go_on)

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
        deferred_before = self._deferred
        waiting_zones = await self._dispatch_room(0 if self._waiting_zones else MESSAGE_GRACE_MS)
        # A request that was deferred meanwhile may have arrived after the ledger was read.
        self._waiting_zones = waiting_zones | ({None} if self._deferred != deferred_before else set())

    async def _dispatch_room(self, older_than_ms: int) -> set[str | None]:
        """Dispatch the room from its head, past the zones that are full; returns the zones in which some wait on."""
        full: set[str | None] = set()
        while None not in full:
            waiting = await self._ledger.waiting_first(ROOM_BATCH, older_than_ms, [one for one in full if one])
            full |= await self._dispatch(waiting)
            if len(waiting) < ROOM_BATCH:
                break
        return full

    async def _dispatch(self, waiting: Sequence[Waiting]) -> set[str | None]:
        """Assign what finds room, in order; returns the zones that were full for somebody (None: all are)."""
        estimates = {one.substation: one for one in self._watcher.estimates()}
        chosen: list[tuple[Waiting, Choice]] = []
        full: set[str | None] = set()
        for one in waiting:
            if one.zone in full or self._table.is_reserved(one.request_id, one.attempt + 1):
                continue  # no room for its like, or another delivery of it is on its way through here
            started = time.perf_counter()
            decision = choose(self._policy, list(estimates.values()), one.power_max_w, one.zone, self._rng)
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
        if chosen:
            crash_point("balancer.chosen")
            await self._assign(chosen)
        return full

    async def _assign(self, chosen: Sequence[tuple[Waiting, Choice]]) -> None:
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
        outcomes = await asyncio.gather(
            *(self._publish(substation, hints) for substation, hints in by_substation.items()), return_exceptions=True
        )
        crash_point("balancer.published")
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _publish(self, substation: str, hints: Sequence[Hint]) -> None:
        try:
            await self._publisher.publish_hints(topology.ASSIGNMENTS, substation, hints)
        except Unroutable:
            log.error("substation_has_no_queue", substation=substation, requests=len(hints))
            for request_id in await self._ledger.give_back(hints, substation, Reason.UNROUTABLE):
                self._metrics.reassignments.labels(Reason.UNROUTABLE).inc()
                log.info("assignment_taken_back", request_id=request_id, substation=substation)
            for hint in hints:
                self._table.release(*hint)
        except BrokerUnavailable as error:
            # The rows stay assigned: the substation's heartbeat finds them.
            log.warning("publish_left_to_the_ledger", substation=substation, requests=len(hints), cause=str(error))
