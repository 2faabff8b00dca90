"""The sweep: gives up silent substations, sends on what nobody claims, expires, forgets, and audits the promises.

Every balancer sweeps; each change is a compare-and-set in the ledger, so that it does no harm when two do the same.
It never publishes: what it sends back is dispatched from the waiting room like any other.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import TypeVar

from balancer.metrics import BalancerMetrics
from services.clock import monotonic_s
from services.crash_points import crash_point
from services.errors import LedgerUnavailable
from services.ledger.leases import Lease, SilenceWatch, is_lost
from services.ledger.records import Breach, Swept
from services.ledger.states import Status
from services.ledger.sweeping import Sweeping
from services.logs import get_logger
from services.messages import Hint
from services.tasks import run_together

log = get_logger(__name__)

SWEEP_EVERY_S = 0.5
SWEEP_EVERY_LEASE = 0.125
"""The most as a part of the lease: silence is only counted by who looks often."""
UNCLAIMED_AFTER_S = 10.0
"""So long an assigned row may be named by no beat: twice the time in which a living substation finds and claims it."""
FORGET_EVERY_S = 60.0
FORGET_AGAIN_S = 1.0
FORGET_AT_ONCE = 500
AUDIT_EVERY_S = 5.0


Thing = TypeVar("Thing")
Answer = TypeVar("Answer")


class Patience:
    """Since when things have been so, on this observer's clock; what is not named any more is forgotten. Pure.

    An observer that has not looked for `gap_s` begins anew: whoever could have put things right was kept from it, too.
    """

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._last_s = 0.0
        self._since_s: dict[object, float] = {}

    def standing(self, things: Sequence[Thing], now_s: float) -> list[tuple[Thing, float]]:
        """Each of `things` with the time for which it has been named without a break [s]."""
        known = self._since_s if now_s - self._last_s <= self._gap_s else {}
        self._since_s, self._last_s = {one: known.get(one, now_s) for one in things}, now_s
        return [(one, now_s - self._since_s[one]) for one in things]


class SteadyClock:
    """The database's clock without its steps forward: it goes no faster than the observer's own clock. Pure.

    The first look takes the database's word for it; only a step after that is known for one. A step back is followed.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        """Its time [ms], and the observer's clock [s], at the last look."""

    def look(self, database_ms: int, now_s: float) -> int:
        """Its time [ms], where the database's clock and the observer's own show these."""
        steady_ms = float(database_ms)
        if self._last is not None:
            steady_ms = min(steady_ms, self._last[0] + (now_s - self._last[1]) * 1000)
        self._last = steady_ms, now_s
        return int(steady_ms)


class Sweeper:
    """One balancer's sweep; `look_again` is set where something came back to the waiting room."""

    def __init__(self, ledger: Sweeping, metrics: BalancerMetrics, look_again: asyncio.Event, lease_s: float) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._look_again = look_again
        self._lease_s = lease_s
        self._silence = SilenceWatch(lease_s)
        self._unclaimed = Patience(UNCLAIMED_AFTER_S / 2)
        self._written_at_s = 0.0
        """When a write of a step was last answered: until then the ledger took writes."""
        self._silent: list[Lease] = []
        self._due: list[Hint] = []
        self._clock = SteadyClock()
        self._breaches = Patience(3 * AUDIT_EVERY_S)
        self._told: set[Breach] = set()

    @property
    def steps(self) -> Sequence[Callable[[], Awaitable[None]]]:
        """The steps of a sweep, each of which may be taken at any time; they raise `LedgerUnavailable`.

        What looks does not write: a look that waited for a slow write would take the time for a gap, and begin anew.
        """
        return (
            self._look_at_leases,
            self._lose_the_silent,
            self._lose_orphans,
            self._look_at_unclaimed,
            self._take_back_unclaimed,
            self._expire,
        )

    async def sweep_for_ever(self) -> None:
        """Take every step again and again until cancelled, beside the others, so that none waits for another."""
        await run_together(*map(self._repeat, self.steps))

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except LedgerUnavailable as error:
                log.warning("sweep_paused", cause=str(error))
            await asyncio.sleep(min(SWEEP_EVERY_S, self._lease_s * SWEEP_EVERY_LEASE))

    async def _look_at_leases(self) -> None:
        self._silent = []  # whoever was silent before an outage may be alive after it
        leases = await self._ledger.leases()
        silent_s = self._silence.observe(leases, monotonic_s(), self._written_at_s)
        self._silent = [one for one in leases if is_lost(one, silent_s[one.substation], self._lease_s)]

    async def _lose_the_silent(self) -> None:
        """Give up each by itself: one whose row is locked must not keep the others. Raises the last failure."""
        failed: LedgerUnavailable | None = None
        for one in self._silent:
            log.warning("substation_given_up", substation=one.substation, epoch=one.epoch, holder=one.holder)
            crash_point("sweep.read")
            try:
                self._note(await self._written(self._ledger.lose([one])))
            except LedgerUnavailable as error:
                failed = error
            crash_point("sweep.swept")
        if failed is not None:
            raise failed

    async def _lose_orphans(self) -> None:
        self._note(await self._written(self._ledger.lose_orphans()))

    async def _expire(self) -> None:
        expired = await self._written(self._ledger.expire())
        if expired:
            self._metrics.swept.labels("expired").inc(len(expired))
            log.info("requests_expired", requests=len(expired))

    async def _look_at_unclaimed(self) -> None:
        self._due = []
        unclaimed = await self._ledger.unclaimed()
        # Where the ledger takes no writes, nobody can claim: the time stops, and its leap at the end begins all anew.
        standing = self._unclaimed.standing(unclaimed, min(monotonic_s(), self._written_at_s + UNCLAIMED_AFTER_S / 2))
        self._due = [hint for hint, for_s in standing if for_s >= UNCLAIMED_AFTER_S]

    async def _take_back_unclaimed(self) -> None:
        if self._due and (taken_back := await self._written(self._ledger.take_back(self._due))):
            self._metrics.swept.labels("unclaimed").inc(len(taken_back))
            self._metrics.reassignments.labels("unclaimed").inc(len(taken_back))
            log.warning("assignments_unclaimed", requests=len(taken_back))
            self._look_again.set()

    async def _written(self, change: Awaitable[Answer]) -> Answer:
        answer = await change
        self._written_at_s = monotonic_s()
        return answer

    def _note(self, swept: Sequence[Swept]) -> None:
        for row in swept:
            self._metrics.swept.labels(str(row.reason) if row.status is Status.ACCEPTED else str(row.status)).inc()
            if row.status is Status.ACCEPTED:
                self._metrics.reassignments.labels(row.reason).inc()
        if swept:
            log.info("requests_swept", requests=len(swept))
            self._look_again.set()

    async def forget_for_ever(self, retention_ms: int) -> None:
        """Delete what ended longer ago than `retention_ms`, a little at a time, until cancelled.

        While this balancer runs, a step of the database's clock makes nothing older: idempotency keys are forgotten
        with their requests. The first time waits, because a machine that has just started may yet set its clock right.
        """
        await asyncio.sleep(FORGET_EVERY_S)
        while True:
            forgotten = 0
            try:
                now_ms = self._clock.look(await self._ledger.now_ms(), monotonic_s())
                forgotten = await self._ledger.forget(retention_ms, FORGET_AT_ONCE, at_most_ms=now_ms)
            except LedgerUnavailable as error:
                log.warning("retention_paused", cause=str(error))
            if forgotten:
                self._metrics.swept.labels("forgotten").inc(forgotten)
                log.info("requests_forgotten", requests=forgotten)
            await asyncio.sleep(FORGET_AGAIN_S if forgotten == FORGET_AT_ONCE else FORGET_EVERY_S)

    async def audit_for_ever(self) -> None:
        """Hold the ledger's rows against the promises until cancelled."""
        while True:
            await asyncio.sleep(AUDIT_EVERY_S)
            try:
                await self.audit()
            except LedgerUnavailable as error:
                log.warning("audit_paused", cause=str(error))

    async def audit(self) -> None:
        """Audit once. Each breach is counted and told once, those of a promise in one line; raises as `steps`."""
        breaches = self._breaches.standing(await self._ledger.audit(), monotonic_s())
        counted = {one for one, for_s in breaches if for_s >= one.after_s}
        subjects: dict[str, list[str]] = defaultdict(list)
        for one in sorted(counted - self._told, key=attrgetter("promise", "subject")):
            self._metrics.breaches.inc()
            subjects[one.promise].append(one.subject)
        for promise, broken in subjects.items():
            log.error("promise_broken", promise=promise, breaches=len(broken), subjects=broken)
        self._told = counted
