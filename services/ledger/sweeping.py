"""What a balancer may do to keep the promises: give up lost substations, send rows on, expire, forget, audit.

Everything is compare-and-set, so any number of balancers may do it at once, and twice.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from services.errors import DROPPED, LedgerRefused
from services.ledger import lease_statements, statements
from services.ledger.committer import Operation, Row, Transaction
from services.ledger.connection import LedgerConnection
from services.ledger.leases import Lease
from services.ledger.records import Breach, Swept
from services.ledger.states import TERMINAL, Status
from services.ledger.tenancy import all_leases, lease_values
from services.messages import Hint

AUDIT_NEWEST_TRANSITIONS = 5_000
END_OF_TIME_MS = 2**60
"""Later than any time."""
FORGET_PAGE = 50
"""Requests that are deleted at once where the database refuses some: others' writes wait while these are looked for."""
FORGET_PAGES_MAX = 20
"""Of one call."""
_ENDED = tuple(sorted(one.value for one in TERMINAL))


class Sweeping(Protocol):
    """The sweep's view of the ledger; every method raises `LedgerUnavailable`."""

    async def leases(self) -> list[Lease]:
        """The lease of every substation that ever had one."""

    async def lose(self, leases: Sequence[Lease]) -> list[Swept]:
        """Give up substations whose lease is still as seen: their rows end, or go back to the waiting room.

        An open grant counts as delivered. In this order: nothing owed → completed; stop asked or departed → stopped;
        interrupted too often → failed; else accepted.
        """

    async def lose_orphans(self) -> list[Swept]:
        """The same for rows that charge in an epoch which is over."""

    async def unclaimed(self) -> list[Hint]:
        """Assigned rows that their substation's beat, in its present epoch, does not name as in a bay."""

    async def take_back(self, hints: Sequence[Hint]) -> set[str]:
        """Those of `hints` that still are so → accepted; the ids of those that changed."""

    async def expire(self) -> list[str]:
        """End what waited past its `wait_until`; the ids of those that changed."""

    async def now_ms(self) -> int:
        """The database's clock [ms since the epoch]."""

    async def forget(self, older_than_ms: int, most: int, *, at_most_ms: int = END_OF_TIME_MS) -> int:
        """Delete requests that ended more than `older_than_ms` ago, with their history and key; how many.

        It is now by the database's clock, but at most `at_most_ms`.
        """

    async def audit(self) -> list[Breach]:
        """Rows that break a promise, at most 100."""


def lose(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Give up leases; see `Sweeping.lose`."""
    seen: dict[str, Lease] = {row["substation"]: row["lease"] for row in rows}
    lost = transaction.execute(
        lease_statements.LOSE, [[substation, *lease_values(one)] for substation, one in seen.items()]
    )
    if not lost:
        return []
    sent = _send_elsewhere(
        transaction, [[row["id"], row["epoch"], int(not seen[row["id"]].is_released)] for row in lost]
    )
    sent += transaction.execute(lease_statements.SEND_BACK, [[row["id"]] for row in lost])
    # All under the first: one process sweeps at a time, so that nobody else asks in the same transaction.
    return [{"substation": row["id"], "swept": sent if row is lost[0] else []} for row in lost]


def _send_elsewhere(transaction: Transaction, forfeits: list[list[object]]) -> list[Row]:
    transaction.execute(lease_statements.LOCK_CHARGING, [forfeit[:1] for forfeit in forfeits])
    return transaction.execute(lease_statements.SEND_ELSEWHERE, forfeits)


def _lose_orphans(transaction: Transaction, rows: list[Row]) -> list[Row]:
    orphaned = transaction.execute(lease_statements.ORPHANED)
    sent: list[Row] = []
    if orphaned:
        sent = _send_elsewhere(transaction, [[row["substation"], row["epoch"], 1] for row in orphaned])
    return [{"sweep": rows[0]["sweep"], "swept": sent}]


def take_back(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Take assignments back; see `Sweeping.take_back`."""
    return transaction.execute(lease_statements.TAKE_BACK, [[row["id"], row["attempt"]] for row in rows])


def _expire(transaction: Transaction, rows: list[Row]) -> list[Row]:
    changed = transaction.execute(statements.EXPIRE)
    return [{"sweep": rows[0]["sweep"], "ids": [row["id"] for row in changed]}]


def _expire_named(transaction: Transaction, rows: list[Row]) -> list[Row]:
    return transaction.execute(statements.EXPIRE_NAMED, [[row["id"]] for row in rows])


def _forget(transaction: Transaction, rows: list[Row]) -> list[Row]:
    limits = {name: rows[0][name] for name in ("older_than_ms", "at_most_ms", "most")}
    due = transaction.execute(statements.FORGETTABLE, **limits)
    forgotten = _forget_named(transaction, due)
    if len(forgotten) < len(due) and transaction.execute(statements.STATUSES, [[row["id"]] for row in due]):
        # Else nothing would ever be forgotten but what comes before these.
        raise LedgerRefused("a trigger of the database dropped a deletion", DROPPED)
    return [{"sweep": rows[0]["sweep"], "requests": len(forgotten)}]


def _forget_named(transaction: Transaction, rows: list[Row]) -> list[Row]:
    forgotten = transaction.execute(statements.FORGET, [[row["id"]] for row in rows])
    transaction.execute(statements.FORGET_HISTORY, [[row["id"]] for row in forgotten])
    return forgotten


LOSE = Operation("lose", "substation", lose, spares=True)
LOSE_ORPHANS = Operation("lose_orphans", "sweep", _lose_orphans, spares=True)
TAKE_BACK = Operation("take_back", "id", take_back)
EXPIRE = Operation("expire", "sweep", _expire)
EXPIRE_NAMED = Operation("expire_named", "id", _expire_named)
FORGET = Operation("forget", "sweep", _forget)
FORGET_NAMED = Operation("forget_named", "id", _forget_named)


class _Place(NamedTuple):
    """The request that a pass over the ended ones has looked at last; one state comes after the other."""

    status: str
    since_ms: int = 0
    arrival: int = 0

    def after(self, page: Sequence[Row], *, is_whole: bool) -> "_Place":
        """Where the pass goes on after `page`; once the last state is through, at the start."""
        if is_whole:
            return _Place(self.status, page[-1]["changed_at_ms"], page[-1]["arrival"])
        return _Place(_ENDED[(_ENDED.index(self.status) + 1) % len(_ENDED)])


_START = _Place(_ENDED[0])


class LedgerSweeping:
    """`Sweeping` on a ledger connection."""

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection
        self._forgotten_up_to = _START
        """Where this pass of `_forget_by_id` goes on."""

    async def leases(self) -> list[Lease]:
        """See `Sweeping.leases`."""
        return await all_leases(self._connection)

    async def lose(self, leases: Sequence[Lease]) -> list[Swept]:
        """See `Sweeping.lose`."""
        rows: list[Row] = [{"substation": one.substation, "lease": one} for one in leases]
        return [_swept(row) for answer in await self._connection.write(LOSE, rows) for row in answer["swept"]]

    async def lose_orphans(self) -> list[Swept]:
        """See `Sweeping.lose_orphans`."""
        [answer] = await self._connection.write(LOSE_ORPHANS, [{"sweep": "orphans"}])
        return [_swept(row) for row in answer["swept"]]

    async def unclaimed(self) -> list[Hint]:
        """See `Sweeping.unclaimed`."""
        rows = await self._connection.read(lambda it: it.execute(lease_statements.UNCLAIMED))
        return [Hint(row["id"], row["attempt"]) for row in rows]

    async def take_back(self, hints: Sequence[Hint]) -> set[str]:
        """See `Sweeping.take_back`."""
        rows: list[Row] = [{"id": hint.request_id, "attempt": hint.attempt} for hint in hints]
        return {row["id"] for row in await self._connection.write(TAKE_BACK, rows)}

    async def expire(self) -> list[str]:
        """See `Sweeping.expire`."""
        try:
            ids: list[str] = (await self._connection.write(EXPIRE, [{"sweep": "deadline"}]))[0]["ids"]
        except LedgerRefused:  # one row must not keep the others from their end
            due = await self._connection.read(lambda it: it.execute(statements.EXPIRED))
            ids = [row["id"] for row in await self._connection.write(EXPIRE_NAMED, due)]
        return ids

    async def now_ms(self) -> int:
        """The database's clock [ms since the epoch]; raises `LedgerUnavailable`."""
        [row] = await self._connection.read(lambda it: it.execute(statements.DATABASE_NOW))
        return int(row["now_ms"])

    async def forget(self, older_than_ms: int, most: int, *, at_most_ms: int = END_OF_TIME_MS) -> int:
        """See `Sweeping.forget`."""
        rows: list[Row] = [
            {"sweep": "retention", "older_than_ms": older_than_ms, "at_most_ms": at_most_ms, "most": most}
        ]
        try:
            forgotten: int = (await self._connection.write(FORGET, rows))[0]["requests"]
        except LedgerRefused:  # one row must not keep the others for ever
            forgotten = await self._forget_by_id(older_than_ms, at_most_ms, most)
        return forgotten

    async def _forget_by_id(self, older_than_ms: int, at_most_ms: int, most: int) -> int:
        """Forget all but what the database refuses to delete; raises `LedgerRefused` where that is all.

        Each call goes on where the one before it ended, so that refused requests do not fill every page.
        """
        forgotten, refusal = 0, None
        for _ in range(FORGET_PAGES_MAX):
            size = min(FORGET_PAGE, most - forgotten)
            at = self._forgotten_up_to
            page = await self._forgettable(at, older_than_ms, at_most_ms, size)
            is_last = len(page) < size and at.status == _ENDED[-1]
            self._forgotten_up_to = at.after(page, is_whole=len(page) == size)
            try:
                forgotten += len(await self._connection.write(FORGET_NAMED, page))
            except LedgerRefused as error:
                refusal = error
            if is_last or forgotten >= most:
                break
        if refusal is not None and not forgotten:
            raise refusal
        return forgotten

    async def _forgettable(self, at: _Place, older_than_ms: int, at_most_ms: int, most: int) -> list[Row]:
        place: Row = {"status": at.status, "since_ms": at.since_ms, "arrival": at.arrival}
        limits: Row = {"older_than_ms": older_than_ms, "at_most_ms": at_most_ms, "most": most}
        return await self._connection.read(lambda it: it.execute(statements.FORGETTABLE_AFTER, **place, **limits))

    async def audit(self) -> list[Breach]:
        """See `Sweeping.audit`."""
        rows = await self._connection.read(lambda it: it.execute(statements.AUDIT, newest=AUDIT_NEWEST_TRANSITIONS))
        return [Breach(row["promise"], row["subject"], row["after_s"]) for row in rows]


def _swept(row: Row) -> Swept:
    return Swept(row["id"], Status(row["status"]), row["reason"])
