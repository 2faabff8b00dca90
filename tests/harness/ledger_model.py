"""What a ledger must answer: its promises as a plain model, one request after the other, no database.

`LedgerModel` and `PlainLedger`, the real one, have the same methods and answer in the same plain values.
"""

import collections
from dataclasses import dataclass, field

from harness.ledger import Ledger, new_request, registration

from services.ledger.records import Assignment, Ending, Progress
from services.ledger.states import TERMINAL, Reason, Status
from services.messages import Hint

WAITING = (Status.ACCEPTED, Status.ASSIGNED)
CONNECTORS = 3
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
    status: Status = Status.ACCEPTED
    attempt: int = 0
    substation: str | None = None
    epoch: int | None = None
    claim_number: int = 0
    end_number: int | None = None
    delivered_j: int = 0
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
    claims_total: int = 0
    ends_total: int = 0


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
            row.move(Status.CANCELLED, Reason.REMOTE, stop_asked=True)
        elif row.status is Status.CHARGING:
            row.stop_asked = True
        return row.status

    def assign(self, hints, to):
        rows = [row for row in self._in(Status.ACCEPTED, None) if row.hint in hints and not row.has_waited_too_long]
        for row in rows:
            row.move(Status.ASSIGNED, Reason.DISPATCHED, attempt=row.attempt + 1, substation=to)
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

    def register(self, substation):
        tenure = self.tenures[substation]
        tenure.epoch += 1
        tenure.claims_total = tenure.ends_total = 0
        resumed = self._in(Status.CHARGING, substation)
        for row in resumed:
            row.move(Status.CHARGING, Reason.RESUMED, epoch=tenure.epoch, claim_number=0)
        return (tenure.epoch, {(row.hint, row.delivered_j) for row in resumed})

    def claim(self, hints, at, epoch, places):
        tenure = self.tenures[at]
        eligible = [row for row in self._assigned(hints, at) if not row.has_waited_too_long]
        free = CONNECTORS - len(self._in(Status.CHARGING, at))
        takes = max(0, min(places, free)) if epoch == tenure.epoch else 0
        for row in eligible[:takes]:
            tenure.claims_total += 1
            row.move(Status.CHARGING, Reason.CLAIMED, epoch=epoch, claim_number=tenure.claims_total)
        charging = [row for row in self._in(Status.CHARGING, at) if row.hint in hints and row.epoch == epoch]
        return (
            {(row.hint, row.claim_number, row.delivered_j) for row in charging},
            [row.hint for row in eligible[takes:]],
        )

    def end(self, hint, at, epoch, status, reason, delivered_j):
        tenure = self.tenures[at]
        row = self.rows.get(hint[0])
        if row is None or (row.hint, row.substation, row.epoch) != (hint, at, epoch):
            return None
        if row.status is Status.CHARGING and epoch == tenure.epoch:
            tenure.ends_total += 1
            delivered_j = max(row.delivered_j, delivered_j)
            row.move(status, reason, end_number=tenure.ends_total, delivered_j=delivered_j)
        return row.end_number

    def heartbeat(self, substation, epoch, progress, older_than_ms):
        for hint, delivered_j in progress:
            row = self.rows.get(hint[0])
            if row and (row.status, row.hint, row.substation, row.epoch) == (Status.CHARGING, hint, substation, epoch):
                row.delivered_j = max(row.delivered_j, delivered_j)
        known = {hint[0] for hint, _ in progress}
        assigned = [row.hint for row in self._in(Status.ASSIGNED, substation) if not row.has_waited_too_long]
        charging = self._in(Status.CHARGING, substation)
        return (
            self.tenures[substation].epoch,
            assigned,
            assigned if older_than_ms == 0 else [],
            {(row.hint, row.delivered_j) for row in charging if row.request_id not in known},
            {row.hint for row in charging if row.stop_asked},
        )

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
        return set(await self._ledger.dispatch.expire())

    async def forget(self):
        return await self._ledger.dispatch.forget(0, 1_000)

    async def register(self, substation):
        [tenure] = await self._ledger.charging.register([registration(substation, connectors=CONNECTORS)])
        assert all(one.epoch == tenure.epoch for one in tenure.resumed)
        return (tenure.epoch, {_session(one) for one in tenure.resumed})

    async def claim(self, hints, at, epoch, places):
        claims = await self._ledger.charging.claim(_hints(hints), at, epoch, places)
        numbers = [one.claim_number for one in claims.claimed]
        assert numbers == sorted(numbers)
        return (
            {((one.request_id, one.attempt), one.claim_number, one.energy_delivered_j) for one in claims.claimed},
            list(claims.held),
        )

    async def end(self, hint, at, epoch, status, reason, delivered_j):
        numbers = await self._ledger.charging.end([Ending(*hint, at, epoch, status, reason, delivered_j)])
        return numbers.get(hint[0])

    async def heartbeat(self, substation, epoch, progress, older_than_ms):
        lines = [Progress(*hint, substation, epoch, delivered_j) for hint, delivered_j in progress]
        [answer] = await self._ledger.charging.heartbeat({substation: epoch}, lines, older_than_ms)
        return (
            answer.epoch,
            list(answer.assigned),
            list(answer.overdue),
            {_session(one) for one in answer.charging},
            set(answer.stops_asked),
        )

    async def waiting(self):
        waiting = await self._ledger.dispatch.waiting_first(1_000, 0, [])
        return [(one.request_id, one.attempt) for one in waiting]


def _hints(hints):
    return [Hint(*hint) for hint in hints]


def _session(claimed):
    return ((claimed.request_id, claimed.attempt), claimed.energy_delivered_j)
