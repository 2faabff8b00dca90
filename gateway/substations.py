"""`/substations`: the live load table as the balancers see it, and an operator's orders."""

from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from gateway.bodies import checked, field_problem, read_json, utc_now
from gateway.load_view import LoadView
from gateway.metrics import GatewayMetrics
from gateway.orders import LimitOrder, StatusOrder, describe
from gateway.problems import Problem
from services.ledger.operating import Operating
from services.ledger.records import OrderState


@dataclass(frozen=True)
class SubstationRoutes:
    """The handlers of `/substations`."""

    view: LoadView
    metrics: GatewayMetrics
    ledger: Operating

    async def get_all(self, _request: web.Request) -> web.Response:
        """The whole table with its time and the age of each reading, and how many requests are in each state."""
        return web.json_response(self.view.table() | self.metrics.counts())

    async def get(self, request: web.Request) -> web.Response:
        """One substation's line, and the orders for it."""
        substation = request.match_info["substation"]
        orders = await self._orders(substation)
        line = self.view.substation(substation) or {"substation": substation, "as_of": None}
        return web.json_response({**line, "orders": describe(orders)})

    async def put_limit(self, request: web.Request) -> web.Response:
        """Order a limit; 202, and `orders.applied_at` of the substation tells since when it holds."""
        substation, order = request.match_info["substation"], checked(LimitOrder, await read_json(request))
        own_limit_w = (await self._orders(substation)).own_limit_w
        if not await self.ledger.order_limit(substation, order.limit_w(), order.until_ms(utc_now())):
            raise field_problem("power_kw", f"must be at most the substation's own limit, {own_limit_w / 1000:g}")
        return await self._ordered(substation)

    async def put_operational(self, request: web.Request) -> web.Response:
        """Drain a substation, or let it return; 202 as for a limit."""
        substation, order = request.match_info["substation"], checked(StatusOrder, await read_json(request))
        await self._orders(substation)
        await self.ledger.order_status(substation, operative=order.status == "Operative")
        return await self._ordered(substation)

    async def _ordered(self, substation: str) -> web.Response:
        orders = describe(await self._orders(substation))
        return web.json_response(
            {"substation": substation, "orders": orders},
            status=HTTPStatus.ACCEPTED,
            headers={"Location": f"/substations/{substation}"},
        )

    async def _orders(self, substation: str) -> OrderState:
        """The orders of a substation that the ledger knows; raises `Problem` 404."""
        for state in await self.ledger.orders():
            if state.substation == substation:
                return state
        raise Problem(HTTPStatus.NOT_FOUND, f"there is no substation {substation[:64]!r}")
