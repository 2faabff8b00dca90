"""Keeps the load table true: readings from the scraper, and for exactly these the ledger's in-flight set."""

import asyncio
from collections.abc import Awaitable, Callable

from balancer.load_table import Estimate, LoadTable
from balancer.metrics import BalancerMetrics
from balancer.readings import Reading
from balancer.scraper import Scraper
from services.clock import monotonic_s, wall_ms
from services.errors import BrokerUnavailable, LedgerUnavailable, Unroutable
from services.ledger.dispatch import Dispatch
from services.ledger.records import RegisteredSubstation
from services.logs import get_logger

log = get_logger(__name__)

REGISTRY_EVERY_S = 1.0
REFRESH_AT_LEAST_EVERY_S = 1.0
REFRESH_PAUSE_S = 0.05
"""Scrapes that return within this time share one question to the ledger."""

NAMES_TOLD_MAX, NAME_TOLD_LENGTH = 5, 64
"""What a log line tells of the names that an address gives to substations: anybody may answer there, with anything."""

Tell = Callable[[dict[str, object]], Awaitable[None]]


class Watcher:
    """Owns the load table's refreshes; decisions in between only reserve."""

    def __init__(self, ledger: Dispatch, table: LoadTable, metrics: BalancerMetrics, stale_after_s: float) -> None:
        self._ledger = ledger
        self._table = table
        self._metrics = metrics
        self._stale_after_s = stale_after_s
        self._registry: dict[str, RegisteredSubstation] = {}
        self._fresh: dict[str, Reading] = {}
        self._due = asyncio.Event()
        self.look_again = asyncio.Event()
        """Set after each refresh, and when somebody came to wait; the waiting room waits for it."""
        self.is_broker_away = False
        """Whether the broker did not take the load table when it was told last: then it brings no messages either."""

    def take(self, address: str, readings: dict[str, Reading]) -> None:
        """Note what the scrape of `address` brought; it counts from the next refresh on.

        An address speaks only for the substations that are registered there, and for no epoch beyond the registered
        one: one wrong line would else keep all true readings of a substation out, because they look older.
        """
        registered = {one.substation: one.epoch for one in self._registry.values() if one.metrics_url == address}
        true = {one: it for one, it in readings.items() if it.epoch <= registered.get(one, -1)}
        if len(true) < len(readings):
            wrong = sorted(readings.keys() - true.keys())
            told = [one[:NAME_TOLD_LENGTH] for one in wrong[:NAMES_TOLD_MAX]]
            log.info("readings_not_counted", address=address, readings=len(wrong), substations=told)
        self._fresh.update(true)
        self._due.set()

    def estimates(self) -> list[Estimate]:
        """The table as of now."""
        return self._table.estimates(monotonic_s(), self._stale_after_s)

    def estimate(self, substation: str) -> Estimate:
        """One line of the table as of now; raises `KeyError` for a stranger."""
        return self._table.estimate(substation, monotonic_s(), self._stale_after_s)

    async def follow_registry(self, scraper: Scraper) -> None:
        """Scrape whoever registers, until cancelled."""
        while True:
            try:
                registry = await self._ledger.registry()
            except LedgerUnavailable as error:
                log.warning("registry_left_stale", cause=str(error))
            else:
                self._registry = {one.substation: one for one in registry}
                scraper.follow(registry)
            await asyncio.sleep(REGISTRY_EVERY_S)

    async def refresh_for_ever(self) -> None:
        """Refresh after scrapes, and every second without any, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(REFRESH_AT_LEAST_EVERY_S):
                    await self._due.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(REFRESH_PAUSE_S)
            self._due.clear()
            try:
                await self.refresh()
            except LedgerUnavailable as error:
                log.warning("load_table_left_stale", cause=str(error))

    async def refresh(self) -> None:
        """Ask the ledger what the newest readings do not show, and replace the table by both at once."""
        readings, self._fresh = self._fresh, {}
        since = self._table.version
        try:
            unseen = await self._ledger.unseen(self._table.known(readings))
        except LedgerUnavailable:
            self._fresh = readings | self._fresh
            raise
        zones = {one.substation: one.zone for one in self._registry.values()}
        without_lease = {one.substation for one in self._registry.values() if not one.has_lease}
        self._table.refresh(readings, zones, unseen, since, without_lease=without_lease)
        self._metrics.show(self.estimates())
        self.look_again.set()

    async def publish_for_ever(self, tell: Tell, causes: Callable[[], list[str]], interval_s: float) -> None:
        """Tell the table, and why this balancer is not ready, to whoever listens, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                substations = [describe(one) for one in self.estimates()]
                await tell({"as_of_ms": wall_ms(), "causes": causes(), "substations": substations})
            except (BrokerUnavailable, Unroutable) as error:
                self.is_broker_away = True
                log.info("load_table_not_told", cause=str(error))
            else:
                self.is_broker_away = False


def describe(estimate: Estimate) -> dict[str, object]:
    """An estimate in the API's words and units."""
    return {
        "substation": estimate.substation,
        "zone": estimate.zone,
        "status": "Operative" if estimate.operative else "Inoperative",
        "has_lease": estimate.has_lease,
        "demand_kw": round(estimate.demand_w / 1000, 3),
        "limit_kw": round(estimate.limit_w / 1000, 3),
        "power_kw": round(estimate.scraped_w / 1000, 3),
        "utilisation": round(estimate.utilisation, 4) if estimate.limit_w > 0 else None,
        "sessions": estimate.sessions,
        "connectors": estimate.connectors,
        "bays_taken": estimate.bays_taken,
        "bays": estimate.bays,
        "in_flight": estimate.in_flight,
        "reading_age_s": round(estimate.age_s, 3),
        "fresh": estimate.fresh,
    }
