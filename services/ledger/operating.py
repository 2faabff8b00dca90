"""What an operator may do: limit a substation for a time, drain it, and find where each tells what it measures."""

from typing import Protocol

from services.ledger import statements
from services.ledger.committer import Operation, Row, Transaction
from services.ledger.connection import LedgerConnection
from services.ledger.records import OrderState


class Operating(Protocol):
    """An operator's view of the ledger; every method raises `LedgerUnavailable`."""

    async def order_limit(self, substation: str, limit_w: int | None, until_ms: int | None) -> bool:
        """Limit the power [W] until a time of the database's clock, or for good; None gives its own limit back.

        False where there is no such substation, or its own limit is lower.
        """

    async def order_status(self, substation: str, *, operative: bool) -> bool:
        """Let it take vehicles, or drain it: those that charge finish, those that wait move; False for a stranger."""

    async def orders(self) -> list[OrderState]:
        """The orders of every substation that ever registered, by id."""

    async def metrics_addresses(self) -> dict[str, list[str]]:
        """Where substations tell what they measure: addresses, each with the ids of those that it speaks for.

        Who left in order is not among them, who is silent still is.
        """


def _order_limit(transaction: Transaction, rows: list[Row]) -> list[Row]:
    return transaction.execute(statements.ORDER_LIMIT, [[row["id"], row["limit_w"], row["until_ms"]] for row in rows])


def _order_status(transaction: Transaction, rows: list[Row]) -> list[Row]:
    return transaction.execute(statements.ORDER_STATUS, [[row["id"], row["operative"]] for row in rows])


ORDER_LIMIT = Operation("order_limit", "id", _order_limit)
ORDER_STATUS = Operation("order_status", "id", _order_status)


class LedgerOperating:
    """`Operating` on a ledger connection."""

    def __init__(self, connection: LedgerConnection) -> None:
        self._connection = connection

    async def order_limit(self, substation: str, limit_w: int | None, until_ms: int | None) -> bool:
        """See `Operating.order_limit`."""
        row: Row = {"id": substation, "limit_w": limit_w, "until_ms": until_ms}
        return bool(await self._connection.write(ORDER_LIMIT, [row]))

    async def order_status(self, substation: str, *, operative: bool) -> bool:
        """See `Operating.order_status`."""
        return bool(await self._connection.write(ORDER_STATUS, [{"id": substation, "operative": int(operative)}]))

    async def orders(self) -> list[OrderState]:
        """See `Operating.orders`."""
        rows = await self._connection.read(lambda it: it.execute(statements.ORDER_STATES))
        return [OrderState(**{**row, "operative": bool(row["operative"])}) for row in rows]

    async def metrics_addresses(self) -> dict[str, list[str]]:
        """See `Operating.metrics_addresses`."""
        found: dict[str, list[str]] = {}
        for row in await self._connection.read(lambda it: it.execute(statements.METRICS_ADDRESSES)):
            found.setdefault(row["metrics_url"], []).append(row["id"])
        return found
