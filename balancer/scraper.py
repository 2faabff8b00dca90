"""Scrapes the substations' processes: staggered, concurrent, bounded in time and size."""

import asyncio
import random
from collections.abc import Callable, Sequence

import aiohttp
from prometheus_client import Counter

from balancer.readings import METRIC_NAMES, BadReading, Reading, parse_readings
from services.clock import monotonic_s
from services.ledger.records import RegisteredSubstation
from services.logs import get_logger

log = get_logger(__name__)

SCRAPE_DEADLINE_S = 2.0
SCRAPE_MAX_BYTES = 1024 * 1024
PARSE_OFF_LOOP_BYTES = 64 * 1024
QUERY = [("name[]", name) for name in METRIC_NAMES]


class Scraper:
    """One loop per process address, each at its own phase; `on_readings` gets the address and what it told."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        interval_s: float,
        scrapes: Counter,
        on_readings: Callable[[str, dict[str, Reading]], None],
    ) -> None:
        self._session = session
        self._interval_s = interval_s
        self._scrapes = scrapes
        self._on_readings = on_readings
        self._loops: dict[str, asyncio.Task[None]] = {}

    def follow(self, registry: Sequence[RegisteredSubstation]) -> None:
        """Scrape the addresses of those that hold a lease, and no others, from now on."""
        addresses = {one.metrics_url for one in registry if one.has_lease}
        for address in self._loops.keys() - addresses:
            self._loops.pop(address).cancel()
        self._loops = {address: loop for address, loop in self._loops.items() if not loop.done()}
        for address in sorted(addresses - self._loops.keys()):
            self._loops[address] = asyncio.create_task(self._scrape_for_ever(address))

    async def stop(self) -> None:
        """End all loops."""
        loops = list(self._loops.values())
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)

    async def _scrape_for_ever(self, address: str) -> None:
        clock = asyncio.get_running_loop()
        # The first scrape at once, the second after a random part of the interval: a stagger without a blind start.
        next_at = clock.time() - random.uniform(0, self._interval_s)  # noqa: S311
        while True:
            readings = await self.scrape(address)
            if readings:
                self._on_readings(address, readings)
            next_at = max(next_at + self._interval_s, clock.time() - self._interval_s)
            await asyncio.sleep(max(0.0, next_at - clock.time()))

    async def scrape(self, address: str) -> dict[str, Reading]:
        """The readings at one address, empty where they could not be had or trusted."""
        taken_at_s = monotonic_s()
        try:
            async with asyncio.timeout(SCRAPE_DEADLINE_S):
                exposition = await self._fetch(address)
            if len(exposition) > PARSE_OFF_LOOP_BYTES:
                readings = await asyncio.to_thread(parse_readings, exposition, taken_at_s)
            else:
                readings = parse_readings(exposition, taken_at_s)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._scrapes.labels("failed").inc()
            log.warning("scrape_failed", address=address, cause=str(error) or type(error).__name__)
            return {}
        except (BadReading, UnicodeDecodeError) as fault:
            self._scrapes.labels("rejected").inc()
            log.warning("reading_rejected", address=address, fault=str(fault))
            return {}
        self._scrapes.labels("ok").inc()
        return readings

    async def _fetch(self, address: str) -> str:
        async with self._session.get(f"{address}/metrics", params=QUERY, allow_redirects=False) as response:
            if response.status != 200:
                raise BadReading(f"HTTP status {response.status}")
            body = await response.content.read(SCRAPE_MAX_BYTES + 1)
            while len(body) <= SCRAPE_MAX_BYTES and (more := await response.content.read(SCRAPE_MAX_BYTES)):
                body += more
            if len(body) > SCRAPE_MAX_BYTES:
                raise BadReading(f"more than {SCRAPE_MAX_BYTES} bytes")
            return body.decode("utf-8")
