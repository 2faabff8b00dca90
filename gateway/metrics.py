"""What the gateway measures."""

import asyncio
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.clock import monotonic_s
from services.errors import LedgerUnavailable
from services.ledger.intake import Intake
from services.ledger.states import Status
from services.logs import get_logger

log = get_logger(__name__)

OUTCOMES = ("200", "202", "400", "404", "405", "408", "413", "415", "422", "500", "503", "client_gone")
"""Outcomes that are shown from the start, so that a rate has their first increase, too."""
COUNT_EVERY_S = 2.0
ACCEPT_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class GatewayMetrics:
    """HTTP outcomes, time to accept, and the ledger's counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.http_requests = Counter(
            "evenload_gateway_http_requests",
            "HTTP requests by outcome: the status code, or client_gone where the client left before all was sent.",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self.http_requests.labels(outcome)
        self.accept_s = Histogram(
            "evenload_gateway_accept_duration_seconds",
            "From a charge request's arrival to its commit.",
            registry=registry,
            buckets=ACCEPT_BUCKETS_S,
        )
        self._requests = Gauge(
            "evenload_gateway_requests", "Charge requests in each state, from the ledger.", ["state"], registry=registry
        )
        self._counted: tuple[float, Mapping[Status, int]] | None = None

    async def follow(self, ledger: Intake) -> None:
        """Keep the counts of the ledger's states fresh until cancelled."""
        while True:
            try:
                counts = await ledger.counts()
                self._counted = (monotonic_s(), counts)
                for status, count in counts.items():
                    self._requests.labels(status.value).set(count)
            except LedgerUnavailable as error:
                log.warning("counts_left_stale", cause=str(error))
            await asyncio.sleep(COUNT_EVERY_S)

    def counts(self) -> dict[str, Any]:
        """The last counts of the ledger's states as the API shows them, with their age; null until there are some."""
        if self._counted is None:
            return {"requests": None, "requests_age_s": None}
        counted_at_s, counts = self._counted
        return {"requests": dict(counts), "requests_age_s": round(monotonic_s() - counted_at_s, 3)}
