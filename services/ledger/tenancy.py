"""What a process may do with a substation's lease: wait for it, take it, renew it by beats, and leave in order."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Protocol

from services.errors import DROPPED, LedgerRefused
from services.ledger import lease_statements as statements
from services.ledger.charging import claimed
from services.ledger.committer import Operation, Row, Transaction
from services.ledger.connection import LedgerConnection
from services.ledger.leases import Lease
from services.ledger.records import Beat, Heartbeat, Orders, Registration
from services.messages import Hint


class Tenancy(Protocol):
    """A process's view of the leases it wants or holds; every method raises `LedgerUnavailable`."""

    async def leases(self) -> list[Lease]:
        """The lease of every substation that ever had one."""

    async def leases_of(self, substations: Sequence[str]) -> list[Lease]:
        """The leases of those that ever had one."""

    async def wait_for(self, substations: Sequence[str], heir: str) -> dict[str, Lease]:
        """The leases of those that ever had one; where another holds it, `heir` is noted as who waits for it."""

    async def stop_waiting(self, heir: str) -> None:
        """Take back whatever `wait_for` has noted of this heir: the sweep need not spare those for it any more."""

    async def take(
        self, registrations: Sequence[Registration], seen: Mapping[str, Lease], holder: str
    ) -> dict[str, int]:
        """Begin a new epoch of each substation whose lease is still as `seen`; the epochs of those that are ours now.

        One that is not in `seen` never had a lease. Sessions go on in the new epoch, and an
        open grant counts as delivered; unless the one before was released, each has one interruption more. The lease
        runs from the first beat on.
        """

    async def beat(self, beats: Sequence[Beat], adopt_after_ms: int) -> list[Heartbeat]:
        """Renew leases, write progress, take grants, and read back what the ledger thinks; one transaction.

        Answers only for leases that are ours still. As overdue it names those assigned more than `adopt_after_ms` ago.
        Whoever beats for several at once cannot tell a lease that is lost from a beat that the database refused.
        """

    async def release(self, beats: Sequence[Beat]) -> set[str]:
        """Settle every session at what was delivered and let the leases go; the substations that are released now."""


def wait_for(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Note an heir; see `Tenancy.wait_for`."""
    transaction.execute(statements.WAIT_FOR, [[row["substation"], row["heir"]] for row in rows])
    return transaction.execute(statements.LEASES_OF, [[row["substation"]] for row in rows])


def stop_waiting(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Take back an heir's notes; see `Tenancy.stop_waiting`."""
    transaction.execute(statements.STOP_WAITING, [[row["heir"]] for row in rows])
    return []


def take(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Take leases; see `Tenancy.take`."""
    new = [[*row["values"], row["holder"]] for row in rows if row["seen"] is None]
    taken = transaction.execute(statements.FOUND, new) if new else []
    seen = {row["id"]: row["seen"] for row in rows if row["seen"] is not None}
    if seen:
        changed = transaction.execute(
            statements.TAKE,
            [[*row["values"], row["holder"], *lease_values(row["seen"])] for row in rows if row["seen"] is not None],
        )
        if changed:
            forfeits = [[row["id"], row["epoch"], int(not seen[row["id"]].is_released)] for row in changed]
            transaction.execute(statements.LOCK_CHARGING, [forfeit[:1] for forfeit in forfeits])
            transaction.execute(statements.TAKE_OVER, forfeits)
        taken += changed
    return taken


def lease_values(lease: Lease) -> list[object]:
    """What a compare-and-set on a lease compares."""
    return [lease.epoch, lease.renewals, lease.holder or "", int(lease.is_released)]


def beat(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Beat for substations; see `Tenancy.beat`."""
    beats: dict[str, Beat] = {row["substation"]: row["beat"] for row in rows}
    renewed = transaction.execute(statements.RENEW, [[one.substation, one.epoch, one.holder] for one in beats.values()])
    ours = [beats[row["id"]] for row in renewed]
    if len(ours) < len(beats):
        _refuse_dropped(transaction, [one for one in beats.values() if one not in ours])
    if not ours:
        return []
    applied = [
        [one.substation, one.applied.number, one.applied.limit_w, int(one.applied.operative)]
        for one in ours
        if one.applied is not None
    ]
    if applied:
        transaction.execute(statements.APPLIED, applied)
    _tell(transaction, ours)
    transaction.execute(statements.GRANT, [[one.substation, one.epoch, one.grant_s] for one in ours])
    standing = [[*hint, one.substation, one.epoch] for one in ours for hint in one.in_bays]
    if standing:
        transaction.execute(statements.STAND_IN_BAYS, standing)
    in_bays = [[one.substation, ""] for one in ours] + [[line[2], line[0]] for line in standing]
    transaction.execute(statements.LEAVE_BAYS, in_bays)
    assigned: dict[str, list[Row]] = defaultdict(list)
    older_than_ms = min(row["adopt_after_ms"] for row in rows)
    hosted = [[one.substation] for one in ours]
    for row in transaction.execute(statements.ASSIGNED_HERE, hosted, older_than_ms=older_than_ms):
        assigned[row["substation"]].append(row)
    charging: dict[str, list[Row]] = defaultdict(list)
    for row in transaction.execute(statements.CHARGING_HERE, [[one.substation, one.epoch] for one in ours]):
        charging[row["substation"]].append(row)
    orders = {
        row["substation"]: Orders(row["order_number"], row["limit_w"], bool(row["operative"]))
        for row in transaction.execute(statements.ORDERS, hosted)
    }
    return [
        {
            "substation": one.substation,
            "epoch": one.epoch,
            "assigned": assigned[one.substation],
            "charging": charging[one.substation],
            "orders": orders[one.substation],
        }
        for one in ours
    ]


def _refuse_dropped(transaction: Transaction, unrenewed: list[Beat]) -> None:
    """Raise `LedgerRefused` where a lease was not renewed although it is ours: it must not be taken for a lost one."""
    held = {(one.substation, one.epoch, one.holder) for one in unrenewed}
    for row in transaction.execute(statements.LEASES_OF, [[one.substation] for one in unrenewed]):
        if (row["substation"], row["epoch"], row["holder"]) in held and not row["released"]:
            raise LedgerRefused("a trigger of the database dropped a beat", DROPPED)


def release(transaction: Transaction, rows: list[Row]) -> list[Row]:
    """Settle and leave; see `Tenancy.release`."""
    beats: dict[str, Beat] = {row["substation"]: row["beat"] for row in rows}
    released = transaction.execute(
        statements.RELEASE, [[one.substation, one.epoch, one.holder] for one in beats.values()]
    )
    ours = [beats[row["id"]] for row in released]
    _tell(transaction, ours)
    if ours:
        transaction.execute(statements.SETTLE, [[one.substation, one.epoch] for one in ours])
    return [{"substation": one.substation} for one in ours]


def _tell(transaction: Transaction, beats: Sequence[Beat]) -> None:
    progress = [astuple(line) for one in beats for line in one.progress]
    if progress:
        transaction.execute(statements.PROGRESS, progress)


WAIT_FOR = Operation("wait_for", "substation", wait_for)
STOP_WAITING = Operation("stop_waiting", "heir", stop_waiting)
TAKE = Operation("take", "id", take, spares=True)
BEAT = Operation("beat", "substation", beat, spares=True)
RELEASE = Operation("release", "substation", release, spares=True)


class LedgerTenancy:
    """`Tenancy` on a ledger connection."""

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection

    async def leases(self) -> list[Lease]:
        """See `Tenancy.leases`."""
        return await all_leases(self._connection)

    async def leases_of(self, substations: Sequence[str]) -> list[Lease]:
        """Read the leases of those that ever had one, and of no others; raises `LedgerUnavailable`."""
        ids = [[one] for one in substations]
        return [_lease(row) for row in await self._connection.read(lambda it: it.execute(statements.LEASES_OF, ids))]

    async def wait_for(self, substations: Sequence[str], heir: str) -> dict[str, Lease]:
        """See `Tenancy.wait_for`."""
        rows: list[Row] = [{"substation": one, "heir": heir} for one in substations]
        return {row["substation"]: _lease(row) for row in await self._connection.write(WAIT_FOR, rows)}

    async def stop_waiting(self, heir: str) -> None:
        """See `Tenancy.stop_waiting`."""
        await self._connection.write(STOP_WAITING, [{"heir": heir}])

    async def take(
        self, registrations: Sequence[Registration], seen: Mapping[str, Lease], holder: str
    ) -> dict[str, int]:
        """See `Tenancy.take`."""
        rows: list[Row] = [
            {"id": one.substation, "values": astuple(one), "holder": holder, "seen": seen.get(one.substation)}
            for one in registrations
        ]
        return {row["id"]: row["epoch"] for row in await self._connection.write(TAKE, rows)}

    async def beat(self, beats: Sequence[Beat], adopt_after_ms: int) -> list[Heartbeat]:
        """See `Tenancy.beat`."""
        rows: list[Row] = [
            {"substation": one.substation, "beat": one, "adopt_after_ms": adopt_after_ms} for one in beats
        ]
        return [
            Heartbeat(
                row["substation"],
                row["epoch"],
                tuple(Hint(one["id"], one["attempt"]) for one in row["assigned"]),
                tuple(Hint(one["id"], one["attempt"]) for one in row["assigned"] if one["is_overdue"]),
                tuple(claimed(one) for one in row["charging"]),
                row["orders"],
            )
            for row in await self._connection.write(BEAT, rows)
        ]

    async def release(self, beats: Sequence[Beat]) -> set[str]:
        """See `Tenancy.release`."""
        rows: list[Row] = [{"substation": one.substation, "beat": one} for one in beats]
        return {row["substation"] for row in await self._connection.write(RELEASE, rows)}


async def all_leases(connection: LedgerConnection) -> list[Lease]:
    """The lease of every substation that ever had one."""
    return [_lease(row) for row in await connection.read(lambda it: it.execute(statements.ALL_LEASES))]


def _lease(row: Row) -> Lease:
    """A substation's row as an observer sees it."""
    return Lease(row["substation"], row["epoch"], row["renewals"], row["holder"], bool(row["released"]), row["heir"])
