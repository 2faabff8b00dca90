"""What a ledger must answer: its promises as a plain model, one request after the other, no database.

`LedgerModel` and `PlainLedger`, the real one, have the same methods and answer in the same plain values.
"""

import collections
from dataclasses import dataclass, field

from harness.ledger import Ledger, new_request, registration

from services.ledger.leases import Lease
from services.ledger.records import Assignment, Beat, Ending, Progress
from services.ledger.states import INTERRUPTIONS_MAX, TERMINAL, Reason, Status
from services.messages import Hint

WAITING = (Status.ACCEPTED, Status.ASSIGNED)
CONNECTORS = 3
REQUESTED_J, POWER_W = 36_000_000, 11_000
Hints = list[tuple[str, int]]


@dataclass
class Row:
    request_id: str
    arrival: int
    priority: int
    key: str | None
    body: str | None
    wait_until_ms: int = 0
    """Only the ledger knows; who compares tells it."""
    has_waited_too_long: bool = False
    waits_anew: bool = False
    """Its wait has begun anew, and only the ledger knows until when."""
    status: Status = Status.ACCEPTED
    attempt: int = 0
    substation: str | None = None
    epoch: int | None = None
    claim_number: int = 0
    end_number: int | None = None
    delivered_j: int = 0
    granted_j: int = 0
    interruptions: int = 0
    bay_epoch: int | None = None
    stop_asked: bool = False
    history: list = field(default_factory=list)

    def move(self, status: Status, reason: str, **changes) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.status = status
        self.history.append((status, self.substation, self.attempt, self.epoch, reason))

    @property
    def place(self) -> tuple[int, int, int]:
        return (-self.priority, self.wait_until_ms, self.arrival)

    @property
    def hint(self) -> tuple[str, int]:
        return (self.request_id, self.attempt)


@dataclass
class Tenure:
    epoch: int = 0
    renewals: int = 0
    holder: str | None = None
    released: bool = False
    claims_total: int = 0
    ends_total: int = 0

    @property
    def seen(self) -> tuple:
        return (self.epoch, self.renewals, self.holder, self.released)

    def is_held_by(self, epoch: int, holder: str) -> bool:
        return (self.epoch, self.holder, self.released) == (epoch, holder, False)


class LedgerModel:
    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.tenures: dict[str, Tenure] = collections.defaultdict(Tenure)
        self._arrivals = 0

    def _in(self, status: Status, substation: str | None) -> list[Row]:
        found = [row for row in self.rows.values() if (row.status, row.substation) == (status, substation)]
        return sorted(found, key=lambda row: row.place)

    def _assigned(self, hints: Hints, at: str) -> list[Row]:
        return [row for row in self._in(Status.ASSIGNED, at) if row.hint in hints]

    def accept(self, request_id, key, body, priority):
        kept = next((row for row in self.rows.values() if key is not None and row.key == key), None)
        kept = kept or self.rows.get(request_id)
        if kept is None:
            self._arrivals += 1
            kept = self.rows[request_id] = Row(request_id, self._arrivals, priority, key, body)
            kept.move(Status.ACCEPTED, Reason.SUBMITTED)
        return (kept.request_id, kept.body)

    def withdraw(self, request_id):
        row = self.rows.get(request_id)
        if row is None:
            return None
        if row.status in WAITING:
            ended = Status.STOPPED if row.delivered_j else Status.CANCELLED
            row.move(ended, Reason.REMOTE, stop_asked=True)
        elif row.status is Status.CHARGING:
            row.stop_asked = True
        return row.status

    def assign(self, hints, to):
        rows = [row for row in self._in(Status.ACCEPTED, None) if row.hint in hints and not row.has_waited_too_long]
        for row in rows:
            row.move(Status.ASSIGNED, Reason.DISPATCHED, attempt=row.attempt + 1, substation=to, bay_epoch=None)
        return {row.request_id for row in rows}

    def give_back(self, hints, at, reason):
        rows = self._assigned(hints, at)
        for row in rows:
            row.move(Status.ACCEPTED, reason, substation=None)
        return {row.request_id for row in rows}

    def expire(self):
        rows = [row for row in self.rows.values() if row.status in WAITING and row.has_waited_too_long]
        for row in rows:
            row.move(Status.EXPIRED, Reason.WAITED_TOO_LONG)
        return {row.request_id for row in rows}

    def forget(self):
        ended = [row.request_id for row in self.rows.values() if row.status in TERMINAL]
        for one in ended:
            del self.rows[one]
        return len(ended)

    def take(self, substation, seen, holder):
        tenure = self.tenures[substation]
        if (seen is None) != (tenure.epoch == 0) or (seen is not None and seen != tenure.seen):
            return None
        was_released = tenure.released
        tenure.epoch += 1
        tenure.renewals += seen is not None
        tenure.holder, tenure.released = holder, False
        tenure.claims_total = tenure.ends_total = 0
        for row in self._in(Status.CHARGING, substation):
            if not self._interrupt(row, was_released):
                row.move(Status.CHARGING, Reason.RESUMED, epoch=tenure.epoch, claim_number=0)
        return tenure.epoch

    def lose(self, substation, seen):
        tenure = self.tenures[substation]
        if seen != tenure.seen:
            return set()
        was_released = tenure.released
        tenure.epoch += 1
        tenure.holder, tenure.released = None, False
        moved = self._in(Status.CHARGING, substation) + self._in(Status.ASSIGNED, substation)
        for row in moved:
            if row.status is Status.ASSIGNED or not self._interrupt(row, was_released):
                self._send_back(row, Reason.SUBSTATION_LOST)
        return {(row.request_id, row.status, row.history[-1][-1]) for row in moved}

    def _interrupt(self, row, was_released):
        """What a lost tenure does to a session; whether it has ended."""
        if not was_released:
            row.delivered_j = max(row.delivered_j, row.granted_j)
            row.interruptions += 1
        row.granted_j = row.delivered_j
        if row.delivered_j >= REQUESTED_J:
            row.move(Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED)
        elif row.stop_asked:
            row.move(Status.STOPPED, Reason.REMOTE)
        elif row.interruptions > INTERRUPTIONS_MAX:
            row.move(Status.FAILED, Reason.INTERRUPTED_TOO_OFTEN)
        return row.status is not Status.CHARGING

    def _send_back(self, row, reason):
        row.move(Status.ACCEPTED, reason, substation=None)
        row.has_waited_too_long, row.waits_anew = False, True

    def unclaimed(self):
        return {
            row.hint
            for row in self.rows.values()
            if row.status is Status.ASSIGNED and row.bay_epoch != self.tenures[row.substation].epoch
        }

    def take_back(self, hints):
        rows = [row for row in self.rows.values() if row.hint in hints and row.hint in self.unclaimed()]
        for row in rows:
            self._send_back(row, Reason.UNCLAIMED)
        return {row.request_id for row in rows}

    def claim(self, hints, at, epoch, places, in_bays=(), grant_s=0):
        tenure = self.tenures[at]
        eligible = [row for row in self._assigned(hints, at) if not row.has_waited_too_long]
        free = CONNECTORS - len(self._in(Status.CHARGING, at))
        takes = max(0, min(places, free)) if epoch == tenure.epoch and not tenure.released else 0
        for row in sorted(eligible, key=lambda row: row.hint not in in_bays)[:takes]:
            tenure.claims_total += 1
            row.move(Status.CHARGING, Reason.CLAIMED, epoch=epoch, claim_number=tenure.claims_total)
            row.granted_j = min(REQUESTED_J, row.delivered_j + POWER_W * grant_s)
        charging = [row for row in self._in(Status.CHARGING, at) if row.hint in hints and row.epoch == epoch]
        return (
            {(row.hint, row.claim_number, row.delivered_j, row.granted_j) for row in charging},
            [row.hint for row in eligible if row.status is Status.ASSIGNED],
        )

    def end(self, hint, at, epoch, status, reason, delivered_j):
        tenure = self.tenures[at]
        row = self.rows.get(hint[0])
        if row is None or (row.hint, row.substation, row.epoch) != (hint, at, epoch):
            return None
        if row.status is Status.CHARGING and epoch == tenure.epoch:
            tenure.ends_total += 1
            delivered_j = max(row.delivered_j, delivered_j)
            row.move(status, reason, end_number=tenure.ends_total, delivered_j=delivered_j, granted_j=delivered_j)
        return row.end_number

    def beat(self, substation, epoch, holder, progress, in_bays, grant_s, older_than_ms):
        tenure = self.tenures[substation]
        if not tenure.is_held_by(epoch, holder):
            return None
        tenure.renewals += 1
        self._tell(substation, epoch, progress)
        charging = self._in(Status.CHARGING, substation)
        for row in charging:
            if row.granted_j <= row.delivered_j:
                row.granted_j = min(REQUESTED_J, row.delivered_j + POWER_W * grant_s)
        standing = {hint[0] for hint in in_bays}
        for row in self._in(Status.ASSIGNED, substation):
            row.bay_epoch = epoch if row.hint in in_bays else row.bay_epoch if row.request_id in standing else None
        assigned = [row.hint for row in self._in(Status.ASSIGNED, substation) if not row.has_waited_too_long]
        return (
            assigned,
            assigned if older_than_ms == 0 else [],
            {(row.hint, row.delivered_j, row.granted_j, row.stop_asked) for row in charging},
        )

    def release(self, substation, epoch, holder, progress):
        tenure = self.tenures[substation]
        if not tenure.is_held_by(epoch, holder):
            return False
        tenure.released = True
        self._tell(substation, epoch, progress)
        for row in self._in(Status.CHARGING, substation):
            row.granted_j = row.delivered_j
        return True

    def _tell(self, substation, epoch, progress):
        for hint, delivered_j, wanted_j in progress:
            row = self.rows.get(hint[0])
            if row and (row.status, row.hint, row.substation, row.epoch) == (Status.CHARGING, hint, substation, epoch):
                row.delivered_j = max(row.delivered_j, delivered_j)
                row.granted_j = max(row.granted_j, wanted_j)

    def waiting(self):
        return [row.hint for row in self._in(Status.ACCEPTED, None) if not row.has_waited_too_long]


class PlainLedger:
    """A real ledger's answers in plain values."""

    def __init__(self, connection):
        self._ledger = Ledger(connection)

    async def accept(self, request_id, key, body, priority):
        [answer] = await self._ledger.intake.accept(
            [new_request(request_id, idempotency_key=key, body_hash=body, priority=priority)]
        )
        assert answer.asked == request_id
        return (answer.request_id, answer.body_hash)

    async def withdraw(self, request_id):
        return await self._ledger.intake.withdraw(request_id)

    async def assign(self, hints, to):
        return await self._ledger.dispatch.assign([Assignment(*hint, to) for hint in hints])

    async def give_back(self, hints, at, reason):
        if reason is Reason.DECLINED:
            return await self._ledger.charging.decline(_hints(hints), at)
        return await self._ledger.dispatch.give_back(_hints(hints), at, reason)

    async def expire(self):
        return set(await self._ledger.sweeping.expire())

    async def forget(self):
        return await self._ledger.sweeping.forget(0, 1_000)

    async def take(self, substation, seen, holder):
        leases = {} if seen is None else {substation: Lease(substation, *seen)}
        kind = registration(substation, connectors=CONNECTORS)
        return (await self._ledger.tenancy.take([kind], leases, holder)).get(substation)

    async def lose(self, substation, seen):
        swept = await self._ledger.sweeping.lose([Lease(substation, *seen)])
        return {(one.request_id, one.status, one.reason) for one in swept}

    async def unclaimed(self):
        return set(await self._ledger.sweeping.unclaimed())

    async def take_back(self, hints):
        return await self._ledger.sweeping.take_back(_hints(hints))

    async def claim(self, hints, at, epoch, places, in_bays=(), grant_s=0):
        claims = await self._ledger.charging.claim(
            _hints(hints), at, epoch, places, in_bays=_hints(in_bays), grant_s=grant_s
        )
        numbers = [one.claim_number for one in claims.claimed]
        assert numbers == sorted(numbers)
        return (
            {
                ((one.request_id, one.attempt), max(0, one.claim_number), one.energy_delivered_j, one.energy_granted_j)
                for one in claims.claimed
            },
            list(claims.held),
        )

    async def end(self, hint, at, epoch, status, reason, delivered_j):
        numbers = await self._ledger.charging.end([Ending(*hint, at, epoch, status, reason, delivered_j)])
        return numbers.get(hint[0])

    async def beat(self, substation, epoch, holder, progress, in_bays, grant_s, older_than_ms):
        beat = _beat(substation, epoch, holder, progress, in_bays, grant_s)
        for answer in await self._ledger.tenancy.beat([beat], older_than_ms):
            assert (answer.substation, answer.epoch) == (substation, epoch)
            return (
                list(answer.assigned),
                list(answer.overdue),
                {
                    ((one.request_id, one.attempt), one.energy_delivered_j, one.energy_granted_j, one.stop_asked)
                    for one in answer.charging
                },
            )
        return None

    async def release(self, substation, epoch, holder, progress):
        beat = _beat(substation, epoch, holder, progress)
        return await self._ledger.tenancy.release([beat]) == {substation}

    async def waiting(self):
        waiting = await self._ledger.dispatch.waiting_first(1_000, 0, [])
        return [(one.request_id, one.attempt) for one in waiting]


def _hints(hints):
    return [Hint(*hint) for hint in hints]


def _beat(substation, epoch, holder, progress, in_bays=(), grant_s=0):
    lines = tuple(Progress(*hint, substation, epoch, delivered_j, wanted_j) for hint, delivered_j, wanted_j in progress)
    return Beat(substation, epoch, holder, lines, tuple(_hints(in_bays)), grant_s)
