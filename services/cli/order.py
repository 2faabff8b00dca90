"""`evenload limit` and `evenload drain`: an operator's orders, followed until the substation does as it was told."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from services.cli.client import Gateway, connected
from services.cli.following import AWAY, Patience
from services.cli.output import make_console, plain, print_json
from services.clock import monotonic_s
from services.errors import EvenloadError

POLL_S = 0.25


class NotDoneInTime(EvenloadError):
    """The order stands, but was not carried out within the time given; the text says what is missing."""


def limit(
    url: str, substation: str, power_kw: float | None, until: str | None, within_s: float, *, wait: bool, as_json: bool
) -> int:
    """Order a limit [kW]; None gives the substation's own back. Raises `RequestRefused`, `GatewayUnusable`."""
    order = {"power_kw": power_kw, **({} if until is None else {"until": until})}
    return asyncio.run(_run(url, substation, "limit", order, is_applied, within_s, wait=wait, as_json=as_json))


def operational(url: str, substation: str, status: str, within_s: float, *, wait: bool, as_json: bool) -> int:
    """Drain a substation, or let it return; raises as `limit`."""
    is_done = is_empty if status == "Inoperative" else is_applied
    order = {"status": status}
    return asyncio.run(_run(url, substation, "operational", order, is_done, within_s, wait=wait, as_json=as_json))


def lapses_at(in_s: float) -> str:
    """The time so many seconds from now, as the API takes it."""
    return (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat(timespec="milliseconds")


async def _run(
    url: str,
    substation: str,
    what: str,
    order: Mapping[str, Any],
    is_done: Callable[[Mapping[str, Any]], bool],
    within_s: float,
    *,
    wait: bool,
    as_json: bool,
) -> int:
    console = make_console(stderr=as_json)
    async with connected(url) as gateway:
        told = await gateway.order(substation, what, order)
        if wait:
            told = await _follow(gateway, substation, is_done, within_s, console)
    if as_json:
        print_json(told)
    else:
        console.print(summary(told), soft_wrap=True)
    return 0


async def _follow(
    gateway: Gateway, substation: str, is_done: Callable[[Mapping[str, Any]], bool], within_s: float, console: Console
) -> dict[str, Any]:
    """Ask until the order is carried out; a gateway that is away meanwhile changes nothing of an order that stands."""
    give_up_at_s = monotonic_s() + within_s
    patience = Patience()
    spinner = Spinner("dots", Text("waiting until it is applied"))
    with Live(spinner, console=console, transient=True, refresh_per_second=8, auto_refresh=console.is_terminal):
        while True:
            told = await patience.hear(gateway.substation(substation))
            if told is not None and is_done(told):
                return told
            line = AWAY if told is None else _progress(told)
            spinner.update(text=Text(line))
            if monotonic_s() > give_up_at_s:
                raise NotDoneInTime(f"the order stands, but not within {within_s:g} s: {line}")
            await asyncio.sleep(POLL_S)


def is_applied(told: Mapping[str, Any]) -> bool:
    """Whether the substation does as it was told."""
    return told["orders"].get("applied_at") is not None


def is_empty(told: Mapping[str, Any]) -> bool:
    """Whether a substation that takes no vehicles, and of which the balancer knows that, has none left."""
    is_seen = bool(told.get("fresh")) and told.get("status") == "Inoperative"
    return is_applied(told) and is_seen and _vehicles(told) == 0


def summary(told: Mapping[str, Any]) -> str:
    """The orders for a substation, in a sentence or two."""
    orders = told["orders"]
    name = plain(told["substation"])
    limited = orders.get("limit_kw")
    own = f"its own limit, {orders.get('own_limit_kw'):g} kW"
    power = own if limited is None else f"{limited:g} kW instead of {own}"
    until = "" if limited is None else f", until {plain(orders.get('until') or 'the next order')}"
    applied = f"applied at {plain(orders['applied_at'])}" if is_applied(told) else "not applied yet"
    return f"{name} is {plain(orders.get('status'))}: {power}{until}; {applied}"


def _progress(told: Mapping[str, Any]) -> str:
    name = plain(told["substation"])
    if not is_applied(told):
        return f"{name} has not applied it yet; `evenload substations` shows whether it is there"
    return f"{name} takes no vehicles; {_vehicles(told)} are still there"


def _vehicles(told: Mapping[str, Any]) -> int:
    return sum(int(told.get(name) or 0) for name in ("sessions", "bays_taken"))
