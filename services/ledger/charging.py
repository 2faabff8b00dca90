"""What a substation may do with the ledger: register, claim, tell progress, end, decline."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from typing import Protocol

from services.ledger import statements
from services.ledger.committer import Operation, Row, Transaction
from services.ledger.connection import LedgerConnection
from services.ledger.dispatch import give_back
from services.ledger.records import Claimed, Claims, Ending, Heartbeat, Progress, Registration, Tenure
from services.ledger.states import Reason
from services.messages import Hint


class Charging(Protocol):
    """A substation's view of the ledger; every method raises `LedgerUnavailable`."""

    async def register(self, registrations: Sequence[Registration]) -> list[Tenure]:
        """Begin a new epoch of each substation, and take its charging rows along."""

    async def claim(self, hints: Sequence[Hint], substation: str, epoch: int, places: int) -> Claims:
        """Assigned to us at that attempt → charging in our epoch, in the order of the waiting room.

        At most `places` of them, and never more than the ledger itself counts free connectors. One that an earlier
        call has claimed, whose answer was lost, is among the claimed.
        """

    async def decline(self, hints: Sequence[Hint], substation: str) -> set[str]:
        """Assigned to us at that attempt → accepted; the ids of those that changed."""

    async def end(self, endings: Sequence[Ending]) -> dict[str, int]:
        """Charging in our epoch → its end; the end number of each that is ended now, by id.

        One that an earlier call has ended, whose answer was lost, is among them.
        """

    async def heartbeat(
        self, epochs: dict[str, int], progress: Sequence[Progress], older_than_ms: int
    ) -> list[Heartbeat]:
        """Write progress of the hosted substations, and read back what their process may not know.

        Names assigned rows (as overdue those assigned more than `older_than_ms` ago), charging rows that `progress`
        does not name, and charging rows that are asked to stop.
        """


def _lock(transaction: Transaction, substations: Iterable[str]) -> None:
    transaction.execute(statements.LOCK_SUBSTATIONS, [[one] for one in sorted(set(substations))])


def _register(transaction: Transaction, rows: list[Row]) -> list[Row]:
    _lock(transaction, (row["id"] for row in rows))
    registered = transaction.execute(statements.REGISTER, [row["values"] for row in rows])
    resumed: dict[str, list[Row]] = defaultdict(list)
    epochs = [[row["id"], row["epoch"]] for row in registered]
    for row in transaction.execute(statements.RESUME, epochs):
        resumed[row["substation"]].append(row)
    return [{**row, "resumed": resumed[row["id"]]} for row in registered]


def _claim(transaction: Transaction, rows: list[Row]) -> list[Row]:
    hints = [[row["id"], row["attempt"], row["substation"], row["epoch"], row["places"]] for row in rows]
    _lock(transaction, (row["substation"] for row in rows))
    transaction.execute(statements.LOCK_REQUESTS, [hint[:1] for hint in hints])
    _count(transaction, statements.COUNT_CLAIMS, transaction.execute(statements.CLAIM, hints), "claim_number")
    claimed = transaction.execute(statements.CLAIMED, [hint[:4] for hint in hints])
    if len(claimed) == len(rows):
        return claimed
    held = transaction.execute(statements.HELD, [hint[:3] for hint in hints])
    return claimed + [{**row, "is_held": True} for row in held]


def _end(transaction: Transaction, rows: list[Row]) -> list[Row]:
    _lock(transaction, (row["values"][2] for row in rows))
    ended = transaction.execute(statements.END, [row["values"] for row in rows])
    _count(transaction, statements.COUNT_ENDS, ended, "end_number")
    return transaction.execute(statements.ENDED, [row["values"][:4] for row in rows])


def _count(transaction: Transaction, statement: str, changed: list[Row], number: str) -> None:
    highest: dict[str, int] = {}
    for row in changed:
        highest[row["substation"]] = max(highest.get(row["substation"], 0), row[number])
    if highest:
        transaction.execute(statement, [[substation, total] for substation, total in highest.items()])


def _heartbeat(transaction: Transaction, rows: list[Row]) -> list[Row]:
    _lock(transaction, (row["substation"] for row in rows))
    progress = [one for row in rows for one in row["progress"]]
    if progress:
        transaction.execute(statements.PROGRESS, progress)
    hosted = [[row["substation"]] for row in rows]
    answers: dict[str, Row] = {
        row["substation"]: {**row, "assigned": [], "overdue": [], "charging": [], "stops_asked": []}
        for row in transaction.execute(statements.EPOCHS, hosted)
    }
    older_than_ms = min(row["older_than_ms"] for row in rows)
    for row in transaction.execute(statements.ASSIGNED_HERE, hosted, older_than_ms=older_than_ms):
        answer, hint = answers[row["substation"]], Hint(row["id"], row["attempt"])
        answer["assigned"].append(hint)
        if row["is_overdue"]:
            answer["overdue"].append(hint)
    known = [[row["substation"], ""] for row in rows] + [[one[2], one[0]] for one in progress]
    for row in transaction.execute(statements.FORGOTTEN_CHARGING, known):
        answers[row["substation"]]["charging"].append(row)
    for row in transaction.execute(statements.STOPS_ASKED, hosted):
        answers[row["substation"]]["stops_asked"].append(Hint(row["id"], row["attempt"]))
    return list(answers.values())


REGISTER = Operation("register", "id", _register)
CLAIM = Operation("claim", "id", _claim)
END = Operation("end", "id", _end)
HEARTBEAT = Operation("heartbeat", "substation", _heartbeat)


class LedgerCharging:
    """`Charging` on a ledger connection."""

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection

    async def register(self, registrations: Sequence[Registration]) -> list[Tenure]:
        """See `Charging.register`."""
        rows: list[Row] = [{"id": one.substation, "values": astuple(one)} for one in registrations]
        return [
            Tenure(row["id"], row["epoch"], tuple(_claimed(one) for one in row["resumed"]))
            for row in await self._connection.write(REGISTER, rows)
        ]

    async def claim(self, hints: Sequence[Hint], substation: str, epoch: int, places: int) -> Claims:
        """See `Charging.claim`."""
        rows: list[Row] = [
            {
                "id": hint.request_id,
                "attempt": hint.attempt,
                "substation": substation,
                "epoch": epoch,
                "places": max(0, places),
            }
            for hint in hints
        ]
        answer = await self._connection.write(CLAIM, rows)
        return Claims(
            tuple(_claimed(row) for row in answer if "is_held" not in row),
            tuple(Hint(row["id"], row["attempt"]) for row in answer if "is_held" in row),
        )

    async def decline(self, hints: Sequence[Hint], substation: str) -> set[str]:
        """See `Charging.decline`."""
        return await give_back(self._connection, hints, substation, Reason.DECLINED)

    async def end(self, endings: Sequence[Ending]) -> dict[str, int]:
        """See `Charging.end`."""
        rows: list[Row] = [{"id": one.request_id, "values": astuple(one)} for one in endings]
        return {row["id"]: row["end_number"] for row in await self._connection.write(END, rows)}

    async def heartbeat(
        self, epochs: dict[str, int], progress: Sequence[Progress], older_than_ms: int
    ) -> list[Heartbeat]:
        """See `Charging.heartbeat`."""
        by_substation: dict[str, list[tuple[object, ...]]] = {substation: [] for substation in epochs}
        for one in progress:
            by_substation[one.substation].append(astuple(one))
        rows: list[Row] = [
            {"substation": substation, "progress": theirs, "older_than_ms": older_than_ms}
            for substation, theirs in by_substation.items()
        ]
        return [
            Heartbeat(
                row["substation"],
                row["epoch"],
                tuple(row["assigned"]),
                tuple(row["overdue"]),
                tuple(_claimed(one) for one in row["charging"]),
                tuple(row["stops_asked"]),
            )
            for row in await self._connection.write(HEARTBEAT, rows)
        ]


def _claimed(row: Row) -> Claimed:
    return Claimed(
        row["id"],
        row["attempt"],
        row["substation"],
        row["epoch"],
        row["claim_number"],
        row["power_max_w"],
        row["energy_requested_j"],
        row["energy_delivered_j"],
        row["departs_in_ms"],
    )
