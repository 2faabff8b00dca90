"""Waits for a balancer's first whole look at the grid: until then all that comes would go to whoever is seen."""

import asyncio
import contextlib
from collections.abc import Collection

import aiohttp

SEEN_WITHIN_S = 15.0
POLL_S = 0.1


async def until_seen(http: aiohttp.ClientSession, gateway_url: str, substations: Collection[str]) -> bool:
    """Wait until the load table has a fresh reading of each of `substations`; False where it takes too long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SEEN_WITHIN_S):
            while True:
                if set(substations) <= await _seen(http, gateway_url):
                    return True
                await asyncio.sleep(POLL_S)
    return False


async def _seen(http: aiohttp.ClientSession, gateway_url: str) -> set[str]:
    with contextlib.suppress(aiohttp.ClientError, OSError):  # asked again; a timeout is an OSError too
        async with http.get(f"{gateway_url}/substations") as response:
            return {one["substation"] for one in (await response.json())["items"] if one["fresh"]}
    return set()
