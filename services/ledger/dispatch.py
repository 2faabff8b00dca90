"""What a balancer may do with the ledger: see who waits and what is on its way, and assign."""

import json
from collections.abc import Sequence
from typing import Protocol

from services.ledger import statements
from services.ledger.committer import Operation, Row, Transaction
from services.ledger.connection import LedgerConnection
from services.ledger.records import Assignment, Known, RegisteredSubstation, Unseen, Waiting
from services.ledger.states import Reason
from services.messages import Hint

REMEMBER_GONE_MS = 600_000
"""So long a substation without a lease is still told of: somebody will want to see that it is gone."""


class Dispatch(Protocol):
    """A balancer's view of the ledger; every method raises `LedgerUnavailable`."""

    async def waiting(self, hints: Sequence[Hint]) -> list[Waiting]:
        """Those of `hints` that are still accepted at that attempt, in the order of the waiting room."""

    async def waiting_first(self, most: int, older_than_ms: int, full_zones: Sequence[str]) -> list[Waiting]:
        """The head of the waiting room, without `full_zones` and rows that changed less than `older_than_ms` ago."""

    async def assign(self, assignments: Sequence[Assignment]) -> set[str]:
        """Accepted at that attempt → assigned, one attempt higher; the ids of those that changed."""

    async def give_back(self, hints: Sequence[Hint], substation: str, reason: Reason) -> set[str]:
        """Assigned to `substation` at that attempt → accepted; the ids of those that changed."""

    async def unseen(self, known: Sequence[Known]) -> list[Unseen]:
        """What the readings do not contain yet: assigned rows, later claims, and (negative) later ends."""

    async def registry(self) -> list[RegisteredSubstation]:
        """Every substation that has a lease, or had one until a little while ago, by id."""


def _assign(transaction: Transaction, rows: list[Row]) -> list[Row]:
    return transaction.execute(
        statements.ASSIGN, [[row["id"], row["attempt"], row["substation"], row["decision"]] for row in rows]
    )


def _give_back(transaction: Transaction, rows: list[Row]) -> list[Row]:
    return transaction.execute(
        statements.GIVE_BACK, [[row["id"], row["attempt"], row["substation"], row["reason"]] for row in rows]
    )


ASSIGN = Operation("assign", "id", _assign)
GIVE_BACK = Operation("give_back", "id", _give_back)


async def give_back(connection: LedgerConnection, hints: Sequence[Hint], substation: str, reason: Reason) -> set[str]:
    """Send assigned requests back to the waiting room; balancers and substations both may."""
    rows: list[Row] = [
        {"id": hint.request_id, "attempt": hint.attempt, "substation": substation, "reason": reason} for hint in hints
    ]
    return {row["id"] for row in await connection.write(GIVE_BACK, rows)}


class LedgerDispatch:
    """`Dispatch` on a ledger connection."""

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection

    async def waiting(self, hints: Sequence[Hint]) -> list[Waiting]:
        """See `Dispatch.waiting`."""
        return _waiting(await self._connection.read(lambda it: it.execute(statements.WAITING_NAMED, hints)))

    async def waiting_first(self, most: int, older_than_ms: int, full_zones: Sequence[str]) -> list[Waiting]:
        """See `Dispatch.waiting_first`."""
        rows = await self._connection.read(
            lambda it: it.execute(
                statements.WAITING_FIRST, [[zone] for zone in full_zones], most=most, older_than_ms=older_than_ms
            )
        )
        return _waiting(rows)

    async def assign(self, assignments: Sequence[Assignment]) -> set[str]:
        """See `Dispatch.assign`."""
        rows: list[Row] = [
            {
                "id": one.request_id,
                "attempt": one.attempt,
                "substation": one.substation,
                "decision": json.dumps(one.decision, separators=(",", ":")),
            }
            for one in assignments
        ]
        return {row["id"] for row in await self._connection.write(ASSIGN, rows)}

    async def give_back(self, hints: Sequence[Hint], substation: str, reason: Reason) -> set[str]:
        """See `Dispatch.give_back`."""
        return await give_back(self._connection, hints, substation, reason)

    async def unseen(self, known: Sequence[Known]) -> list[Unseen]:
        """See `Dispatch.unseen`."""
        rows = await self._connection.read(
            lambda it: it.execute(
                statements.UNSEEN, [[one.substation, one.epoch, one.claims_total, one.ends_total] for one in known]
            )
        )
        return [Unseen(row["id"], row["attempt"], row["substation"], row["power_max_w"], row["sign"]) for row in rows]

    async def registry(self) -> list[RegisteredSubstation]:
        """See `Dispatch.registry`."""
        rows = await self._connection.read(lambda it: it.execute(statements.REGISTRY, gone_within_ms=REMEMBER_GONE_MS))
        return [
            RegisteredSubstation(row["id"], row["zone"], row["epoch"], row["metrics_url"], bool(row["has_lease"]))
            for row in rows
        ]


def _waiting(rows: list[Row]) -> list[Waiting]:
    return [Waiting(row["id"], row["attempt"], row["power_max_w"], row["zone"]) for row in rows]
