"""`evenload top`: the grid, live, until Ctrl-C."""

import asyncio
import time
from typing import Any

from rich.live import Live

from services.cli.client import Gateway, GatewayUnusable, connected
from services.cli.output import make_console, print_json
from services.cli.top_frame import frame
from services.cli.watching import Change, Watch
from services.clock import monotonic_s
from services.errors import EvenloadError

EVERY_S = 1.0
NEWEST = 500
"""Requests that are watched for changes: the most that the gateway lists at once."""


def run(url: str, *, once: bool, as_json: bool) -> int:
    """Show frames until Ctrl-C, which is a good end; `once` shows a single one.

    Raises `GatewayUnusable` where the gateway does not answer at first; later on it is waited for.
    """
    try:
        return asyncio.run(_json(url, once=once) if as_json else _frames(url, once=once))
    except KeyboardInterrupt:
        return 0


async def _json(url: str, *, once: bool) -> int:
    watch = Watch()
    async with connected(url) as gateway:
        changed = await _look(gateway, watch)
        while True:
            print_json(_object(watch, changed))
            if once:
                return 0
            await asyncio.sleep(EVERY_S)
            try:
                changed = await _look(gateway, watch)
            except EvenloadError as error:
                print_json({"at": round(time.time(), 3), "error": str(error)})
                changed = []


async def _frames(url: str, *, once: bool) -> int:
    watch = Watch()
    console = make_console()
    fault = ""
    async with connected(url) as gateway:
        await _look(gateway, watch)
        if once or not console.is_terminal:
            console.print(frame(watch, gateway.url, fault, console.width, None))
            return 0
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(frame(watch, gateway.url, fault, console.width, console.height), refresh=True)
                await asyncio.sleep(EVERY_S)
                try:
                    await _look(gateway, watch)
                    fault = ""
                except EvenloadError as error:
                    fault = str(error)


async def _look(gateway: Gateway, watch: Watch) -> list[Change]:
    try:
        async with asyncio.timeout(5):
            table, newest = await asyncio.gather(gateway.load_table(), gateway.requests(limit=NEWEST))
    except TimeoutError:
        raise GatewayUnusable(f"the gateway at {gateway.url} does not answer") from None
    return watch.take(table, newest, monotonic_s())


def _object(watch: Watch, changed: list[Change]) -> dict[str, Any]:
    accepted_per_s, ended_per_s = watch.rates()
    table = watch.table
    return {
        "at": round(time.time(), 3),
        "as_of": table.get("as_of"),
        "age_s": table.get("age_s"),
        "balancer": table.get("balancer"),
        "substations": table["items"],
        "requests": table.get("requests"),
        "requests_age_s": table.get("requests_age_s"),
        "rates": {"accepted_per_s": accepted_per_s, "ended_per_s": ended_per_s},
        "changes": [
            {
                "request_id": one.request_id,
                "vehicle_id": one.vehicle_id,
                "before": one.before,
                "status": one.status,
                "substation": one.substation,
            }
            for one in changed
        ],
    }
