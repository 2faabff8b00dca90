"""`/targets`: where Prometheus finds the substations, by its HTTP service discovery."""

from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from services.ledger.operating import Operating

SUBSTATIONS_LABEL = "__meta_evenload_substations"
"""Ids of those that a process hosts, with commas between; gone after relabelling unless the configuration uses it."""


@dataclass(frozen=True)
class TargetRoutes:
    """The handler of `/targets`."""

    ledger: Operating

    async def get(self, _request: web.Request) -> web.Response:
        """A target group for each process; without the ledger a 503, and Prometheus keeps its last list."""
        addresses = await self.ledger.metrics_addresses()
        return web.json_response([target_group(address, ids) for address, ids in addresses.items()])


def target_group(address: str, substations: list[str]) -> dict[str, Any]:
    """What Prometheus needs to scrape `address` as the balancers do, at `/metrics` below it."""
    url = URL(address)
    labels = {SUBSTATIONS_LABEL: ",".join(substations)}
    if url.scheme != "http":
        labels["__scheme__"] = url.scheme
    if url.path.strip("/"):
        labels["__metrics_path__"] = f"{url.path.rstrip('/')}/metrics"
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host
    return {"targets": [f"{host}:{url.port}"], "labels": labels}
