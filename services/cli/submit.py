"""`evenload submit`: one charge request, followed to its end where that is wanted."""

import asyncio
import uuid
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from services.cli.client import ENDED, Gateway, connected
from services.cli.following import AWAY, Patience
from services.cli.output import make_console, plain, print_json
from services.cli.requests_shown import energy, request_page, seconds, state
from services.errors import Misconfigured

POLL_S = 0.5


def run(url: str, body: dict[str, Any], key: str | None, *, wait: bool, as_json: bool) -> int:
    """Send one request; with `wait` follow it, and return 0 only where it is completed.

    Members of `body` that are None are left to the gateway's defaults. Raises `Misconfigured` for a key that no
    header can carry, `GatewayUnusable` and `RequestRefused`.
    """
    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        raise Misconfigured(f"--key: give visible ASCII characters without spaces (got {key!r})")
    body = {name: value for name, value in body.items() if value is not None}
    body.setdefault("vehicle_id", f"EV-{uuid.uuid4().hex[:6]}")
    return asyncio.run(_run(url, body, key, wait=wait, as_json=as_json))


async def _run(url: str, body: dict[str, Any], key: str | None, *, wait: bool, as_json: bool) -> int:
    console = make_console(stderr=as_json)
    async with connected(url) as gateway:
        accepted = await gateway.submit(body, key)
        request_id = str(accepted["request_id"])
        where = f"{gateway.url}/charge-requests/{request_id}"
        if not as_json:
            _tell(console, request_id, plain(accepted["status"]), str(body["vehicle_id"]), where)
        ended = await _follow(gateway, request_id, console) if wait else None
    if as_json:
        print_json((ended or accepted | {"vehicle_id": body["vehicle_id"]}) | {"url": where})
    elif ended is not None:
        console.print(request_page(ended))
    return 0 if ended is None or ended["status"] == "completed" else 1


def _tell(console: Console, request_id: str, status: str, vehicle_id: str, where: str) -> None:
    lines = [("request", request_id), ("vehicle", vehicle_id), ("status", status), ("look at", where)]
    lines.append(("or", f"evenload status {request_id}"))
    for name, value in lines:
        console.print(f"  {name:<9} {plain(value)}", markup=False, soft_wrap=True)


async def _follow(gateway: Gateway, request_id: str, console: Console) -> dict[str, Any]:
    """Ask until the request has ended; raises `GatewayUnusable` where the gateway stays away."""
    patience = Patience()
    said = ""
    spinner = Spinner("dots", Text("waiting for its first news"))
    with Live(spinner, console=console, transient=True, refresh_per_second=8, auto_refresh=console.is_terminal) as live:
        while True:
            one = await patience.hear(gateway.request(request_id))
            if one is None:
                spinner.update(text=Text(AWAY, "red"))
            else:
                line = _news(one)
                spinner.update(text=line)
                changed = f"{one['status']} {one['substation']}"
                if not console.is_terminal and changed != said:
                    live.console.print(line)
                said = changed
                if one["status"] in ENDED:
                    return one
            await asyncio.sleep(POLL_S)


def _news(one: dict[str, Any]) -> Text:
    line = state(one["status"])
    if one["substation"]:
        line.append(f" at {plain(one['substation'])}", "default")
    if one.get("position") is not None:
        wait_s = one.get("expected_wait_s")
        hope = "" if wait_s is None else f", about {seconds(wait_s)} to go"
        line.append(f", position {plain(one['position'])}{hope}", "default")
    return line.append(f", {energy(one)}", "default")
