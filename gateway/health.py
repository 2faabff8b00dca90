"""`/services`: every process that the gateway knows, whether it is ready, and what it lacks."""

import asyncio
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from gateway.load_view import Heard, LoadView
from services.admin import AdminServer
from services.clock import monotonic_s
from services.errors import LedgerUnavailable
from services.ledger.operating import Operating

ASK_DEADLINE_S = 2.0
ASKED_AT_ONCE = 20
TOLD_MAX_BYTES = 4_096
SILENT_AFTER_S = 5.0
"""A balancer tells its load table each second."""


@dataclass(frozen=True)
class ServiceRoutes:
    """The handler of `/services`; `admin` tells what this gateway itself lacks."""

    instance: str
    admin: AdminServer
    view: LoadView
    ledger: Operating
    http: aiohttp.ClientSession

    async def get(self, _request: web.Request) -> web.Response:
        """Ask the `substations` processes that the ledger names; the balancers have told of themselves.

        Without the ledger those processes are unknown; the gateway's own line says then what the ledger lacks.
        """
        items = [self._own()]
        items += [_balancer(name, heard, monotonic_s()) for name, heard in self.view.balancers().items()]
        try:
            addresses = await self.ledger.metrics_addresses()
        except LedgerUnavailable as error:
            items[0] = self._own(f"the ledger cannot be read: {error}")
        else:
            gate = asyncio.Semaphore(ASKED_AT_ONCE)
            items += await asyncio.gather(*(self._ask(gate, address, ids) for address, ids in addresses.items()))
        return web.json_response({"items": items})

    def _own(self, *also: str) -> dict[str, Any]:
        """This gateway's line; what it can do without is told, too, and leaves it ready."""
        line = _line("gateway", self.instance, [*self.admin.causes(), *also])
        return {**line, "causes": [*line["causes"], *self.admin.degraded()]}

    async def _ask(self, gate: asyncio.Semaphore, address: str, substations: list[str]) -> dict[str, Any]:
        url, causes = f"{address}/readyz", list[str]()
        try:
            async with gate, asyncio.timeout(ASK_DEADLINE_S), self.http.get(url, allow_redirects=False) as response:
                told = (await response.content.read(TOLD_MAX_BYTES)).decode(errors="replace").strip()
                if response.status != web.HTTPOk.status_code:
                    causes = [told.removeprefix("not ready: ") or f"HTTP status {response.status}"]
        except TimeoutError:
            causes = [f"it does not answer at {address} within {ASK_DEADLINE_S:g} s"]
        except (aiohttp.ClientError, OSError, ValueError) as error:
            causes = [f"it does not answer at {address} ({error})"]
        return _line("substations", ", ".join(substations), causes)


def _balancer(name: str, heard: Heard, now_s: float) -> dict[str, Any]:
    silent_s = now_s - heard.at_s
    silence = [f"it has told nothing for {silent_s:.0f} s"] if silent_s > SILENT_AFTER_S else []
    return _line("balancer", name, [*silence, *heard.causes])


def _line(service: str, name: str, causes: list[str]) -> dict[str, Any]:
    return {"service": service, "name": name, "ready": not causes, "causes": causes}
