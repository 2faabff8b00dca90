"""What a substation may do with requests: claim them, end them, decline them."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import astuple
from typing import Protocol

from services.errors import DROPPED, LedgerRefused
from services.ledger import statements
from services.ledger.committer import Operation, Row, Transaction
from services.ledger.connection import LedgerConnection
from services.ledger.dispatch import give_back
from services.ledger.records import Claimed, Claims, Ending
from services.ledger.states import Reason
from services.messages import Hint


class Charging(Protocol):
    """A substation's view of its requests; every method raises `LedgerUnavailable`."""

    async def claim(
        self,
        hints: Sequence[Hint],
        substation: str,
        epoch: int,
        places: int,
        *,
        usable: int | None = None,
        in_bays: Collection[Hint] = (),
        grant_s: int = 0,
    ) -> Claims:
        """Assigned to us at that attempt → charging in our epoch; who stands in a bay first, then in the room's order.

        At most `places` of them, and never more than connectors are free by the ledger's own count, which begins at
        `usable` where that is less. Each gets a first grant of energy for `grant_s` of session time. One that an
        earlier call has claimed, whose answer was lost, is among the claimed.
        """

    async def decline(self, hints: Sequence[Hint], substation: str, reason: Reason = Reason.DECLINED) -> set[str]:
        """Assigned to us at that attempt → accepted; the ids of those that changed."""

    async def end(self, endings: Sequence[Ending]) -> dict[str, int]:
        """Charging in our epoch → its end; the end number of each that is ended now, by id.

        One that an earlier call has ended, whose answer was lost, is among them. One that is missing charges there no
        more, if it was asked for alone; asked for with others, the database may have refused it.
        """


def lock_substations(transaction: Transaction, substations: Iterable[str]) -> None:
    """Hold the rows of substations, so that nobody else claims, ends, beats or takes over there meanwhile."""
    transaction.execute(statements.LOCK_SUBSTATIONS, [[one] for one in sorted(set(substations))])


def claim(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Claim rows of the hints' values; see `Charging.claim`."""
    hints = [row["values"] for row in rows]
    lock_substations(transaction, (hint[2] for hint in hints))
    transaction.execute(statements.LOCK_REQUESTS, [hint[:1] for hint in hints])
    _count(transaction, statements.COUNT_CLAIMS, transaction.execute(statements.CLAIM, hints), "claim_number")
    claimed = transaction.execute(statements.CLAIMED, [hint[:4] for hint in hints])
    if len(claimed) == len(rows):
        return claimed
    held = transaction.execute(statements.HELD, [hint[:3] for hint in hints])
    return claimed + [{**row, "is_held": True} for row in held]


def end(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """End rows of the endings' values; see `Charging.end`."""
    lock_substations(transaction, (row["values"][2] for row in rows))
    ended = transaction.execute(statements.END, [row["values"] for row in rows])
    _count(transaction, statements.COUNT_ENDS, ended, "end_number")
    asked = [row["values"][:4] for row in rows]
    known = transaction.execute(statements.ENDED, asked)
    if len(known) < len(rows) and transaction.execute(statements.NOT_ENDED, asked):
        raise LedgerRefused("a trigger of the database dropped an end", DROPPED)
    return known


def _count(transaction: Transaction, statement: str, changed: list[Row], number: str) -> None:
    highest: dict[str, int] = {}
    for row in changed:
        highest[row["substation"]] = max(highest.get(row["substation"], 0), row[number])
    if highest:
        transaction.execute(statement, [[substation, total] for substation, total in highest.items()])


# Each transaction would fill all of `places`.
CLAIM = Operation("claim", "id", claim, may_split=False)
END = Operation("end", "id", end)


class LedgerCharging:
    """`Charging` on a ledger connection."""

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection

    async def claim(
        self,
        hints: Sequence[Hint],
        substation: str,
        epoch: int,
        places: int,
        *,
        usable: int | None = None,
        in_bays: Collection[Hint] = (),
        grant_s: int = 0,
    ) -> Claims:
        """See `Charging.claim`."""

        async def ask(some: Sequence[Hint], most: int) -> Claims:
            rows: list[Row] = [
                {
                    "id": one.request_id,
                    "values": [*one, substation, epoch, max(0, most), grant_s, int(one in in_bays), usable],
                }
                for one in some
            ]
            answer = await self._connection.write(CLAIM, rows)
            return Claims(
                tuple(claimed(row) for row in answer if "is_held" not in row),
                tuple(Hint(row["id"], row["attempt"]) for row in answer if "is_held" in row),
            )

        try:
            return await ask(hints, places)
        except LedgerRefused:
            if len(hints) == 1:
                raise
        return await _claim_one_by_one(ask, sorted(hints, key=lambda one: one not in in_bays), places)

    async def decline(self, hints: Sequence[Hint], substation: str, reason: Reason = Reason.DECLINED) -> set[str]:
        """See `Charging.decline`."""
        return await give_back(self._connection, hints, substation, reason)

    async def end(self, endings: Sequence[Ending]) -> dict[str, int]:
        """See `Charging.end`."""
        rows: list[Row] = [{"id": one.request_id, "values": astuple(one)} for one in endings]
        return {row["id"]: row["end_number"] for row in await self._connection.write(END, rows)}


async def _claim_one_by_one(
    ask: Callable[[Sequence[Hint], int], Awaitable[Claims]], hints: Sequence[Hint], places: int
) -> Claims:
    """Claim so that a request which the database refuses keeps no other from a connector.

    Raises `LedgerRefused` where nothing is claimed or held beside what is refused.
    """
    claims, refusal = Claims((), ()), None
    for hint in hints:
        try:
            answer = await ask([hint], places - len(claims.claimed))
        except LedgerRefused as error:
            refusal = error
        else:
            claims = Claims(claims.claimed + answer.claimed, claims.held + answer.held)
    if refusal is not None and not claims.claimed and not claims.held:
        raise refusal
    return claims


def claimed(row: Row) -> Claimed:
    """A charging row as its substation needs it."""
    return Claimed(
        request_id=row["id"],
        attempt=row["attempt"],
        substation=row["substation"],
        epoch=row["epoch"],
        claim_number=row["claim_number"],
        power_max_w=row["power_max_w"],
        energy_requested_j=row["energy_requested_j"],
        energy_delivered_j=row["energy_delivered_j"],
        energy_granted_j=row["energy_granted_j"],
        departs_in_ms=row["departs_in_ms"],
        stop_asked=bool(row["stop_asked"]),
    )
