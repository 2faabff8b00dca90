"""`/substations`: the live load table as the balancers see it."""

from dataclasses import dataclass
from http import HTTPStatus

from aiohttp import web

from gateway.load_view import LoadView
from gateway.metrics import GatewayMetrics
from gateway.problems import Problem


@dataclass(frozen=True)
class SubstationRoutes:
    """The handlers of `/substations`."""

    view: LoadView
    metrics: GatewayMetrics

    async def get_all(self, _request: web.Request) -> web.Response:
        """The whole table with its time and the age of each reading, and how many requests are in each state."""
        return web.json_response(self.view.table() | self.metrics.counts())

    async def get(self, request: web.Request) -> web.Response:
        """One substation's line."""
        substation = request.match_info["substation"]
        line = self.view.substation(substation)
        if line is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"no balancer knows a substation {substation[:64]!r}")
        return web.json_response(line)
