"""What a gateway may do with the ledger: take requests in, and tell what became of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from services.errors import DROPPED
from services.ledger import statements
from services.ledger.committer import Operation, Row, Transaction
from services.ledger.connection import LedgerConnection
from services.ledger.records import (
    Accepted,
    ListedRequest,
    NewRequest,
    Outlook,
    PastSession,
    Place,
    Queued,
    Refused,
    RequestRecord,
    Unconfirmed,
)
from services.ledger.states import Status, Transition


class Intake(Protocol):
    """A gateway's view of the ledger; every method raises `LedgerUnavailable`."""

    async def accept(self, requests: Sequence[NewRequest]) -> list[Accepted | Refused | Unconfirmed]:
        """Write new requests, unless their idempotency key is taken; the accepted are durable when this returns.

        Each has an answer; one that a trigger drops without an error is refused, too. Raises `LedgerRefused` where the
        database refuses all of them with an error.
        """

    async def withdraw(self, request_id: str) -> Status | None:
        """End a waiting request at once, ask the substation of a charging one to stop it; terminal ones stay.

        Returns the state it is in then; None where there is none of that id.
        """

    async def request(self, request_id: str) -> RequestRecord | None:
        """One request with its history, oldest line first; None where there is none of that id."""

    async def listed(
        self, *, before: int, most: int, status: Status | None, substation: str | None
    ) -> list[ListedRequest]:
        """Requests that arrived before number `before`, newest first, at most `most`; of one state or substation."""

    async def counts(self) -> Mapping[Status, int]:
        """How many requests are in each state; every state is named."""

    async def outlook(self, *, waiting_most: int, ends_most: int, ends_within_ms: int) -> Outlook:
        """What an expected wait follows from: who charges, stands in a bay, waits, and how sessions went lately."""


def _accept(transaction: Transaction, rows: list[Row]) -> list[Row]:
    found, written = _insert(transaction, rows)
    if len(found) < len(rows):
        # A key may have belonged to a request that was forgotten between the two statements.
        more_found, more_written = _insert(transaction, _missing(rows, found))
        found, written = found + more_found, written + more_written
    dropped = [{"asked": row["asked"], "refused": DROPPED} for row in _missing(rows, found)]
    return _durable(transaction, found, written) + dropped


def _insert(transaction: Transaction, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """What stands there of these requests, and what of it was written now."""
    new = [[row[column] for column in statements.ACCEPT_COLUMNS] for row in rows]
    written = transaction.execute(statements.ACCEPT, new)
    found = transaction.execute(statements.ACCEPTED, [[row["asked"], row["idempotency_key"]] for row in rows])
    return found, written


def _missing(rows: list[Row], found: list[Row]) -> list[Row]:
    asked = {row["asked"] for row in found}
    return [row for row in rows if row["asked"] not in asked]


def _withdraw(transaction: Transaction, rows: list[Row]) -> list[Row]:
    ids = [[row["id"]] for row in rows]
    changed = transaction.execute(statements.WITHDRAW, ids)
    return _durable(transaction, transaction.execute(statements.STATUSES, ids), changed)


def _durable(transaction: Transaction, answers: list[Row], written: list[Row]) -> list[Row]:
    """The answers, which are told only after a commit that waits, also for rows that others have written."""
    if {row["id"] for row in answers} - {row["id"] for row in written}:
        transaction.execute(statements.WAIT_FOR_OTHERS)
    return answers


ACCEPT = Operation("accept", "asked", _accept, tells_refused=True)
WITHDRAW = Operation("withdraw", "id", _withdraw)


class LedgerIntake:
    """`Intake` on a ledger connection."""

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection

    async def accept(self, requests: Sequence[NewRequest]) -> list[Accepted | Refused | Unconfirmed]:
        """See `Intake.accept`."""
        rows = []
        for new in requests:
            row = asdict(new)
            row["id"] = row["asked"] = row.pop("request_id")
            rows.append(row)
        return [_answer(row) for row in await self._connection.write(ACCEPT, rows)]

    async def withdraw(self, request_id: str) -> Status | None:
        """See `Intake.withdraw`."""
        rows = await self._connection.write(WITHDRAW, [{"id": request_id}])
        return Status(rows[0]["status"]) if rows else None

    async def request(self, request_id: str) -> RequestRecord | None:
        """See `Intake.request`."""
        return await self._connection.read(lambda transaction: _request(transaction, request_id))

    async def listed(
        self, *, before: int, most: int, status: Status | None, substation: str | None
    ) -> list[ListedRequest]:
        """See `Intake.listed`."""
        rows = await self._connection.read(
            lambda it: it.execute(
                statements.LIST, before=before, most=most, status=status or "", substation=substation or ""
            )
        )
        return [
            ListedRequest(
                row["arrival"],
                row["id"],
                row["vehicle_id"],
                Status(row["status"]),
                row["substation"],
                row["attempt"],
                row["energy_requested_j"],
                row["energy_delivered_j"],
                row["accepted_at_ms"],
            )
            for row in rows
        ]

    async def counts(self) -> Mapping[Status, int]:
        """See `Intake.counts`."""
        rows: list[Row] = await self._connection.read(lambda transaction: transaction.execute(statements.COUNTS))
        return dict.fromkeys(Status, 0) | {Status(row["status"]): row["requests"] for row in rows}

    async def outlook(self, *, waiting_most: int, ends_most: int, ends_within_ms: int) -> Outlook:
        """See `Intake.outlook`."""

        def look(it: Transaction) -> Outlook:
            ends = it.execute(statements.RECENT_ENDS, most=ends_most, within_ms=ends_within_ms)
            return Outlook(
                places=tuple(Place(**row) for row in it.execute(statements.PLACES)),
                charging=tuple(Queued(**row) for row in it.execute(statements.CHARGING_NOW)),
                in_bays=tuple(Queued(**row) for row in it.execute(statements.IN_BAYS)),
                waiting=tuple(Queued(**row) for row in it.execute(statements.IN_LINE, most=waiting_most)),
                recent_ends=tuple(PastSession(**row) for row in ends),
            )

        return await self._connection.read(look)


def _answer(row: Row) -> Accepted | Refused | Unconfirmed:
    if "refused" in row:
        return Refused(row["asked"], row["refused"])
    if "unconfirmed" in row:
        return Unconfirmed(row["asked"], row["unconfirmed"])
    return Accepted(row["asked"], row["id"], row["accepted_at_ms"], row["wait_until_ms"], row["body_hash"])


def _request(transaction: Transaction, request_id: str) -> RequestRecord | None:
    found = transaction.execute(statements.REQUEST, id=request_id)
    if not found:
        return None
    history = transaction.execute(statements.HISTORY, id=request_id)
    fields: dict[str, Any] = found[0]
    fields["request_id"] = fields.pop("id")
    fields["status"] = Status(fields["status"])
    fields["decision"] = json.loads(fields["decision"]) if fields["decision"] else None
    position = None
    if fields["status"] is Status.ACCEPTED:
        position = 1 + transaction.execute(statements.POSITION, id=request_id)[0]["ahead"]
    return RequestRecord(
        **fields,
        position=position,
        history=tuple(Transition(**{**line, "status": Status(line["status"])}) for line in history),
    )
