"""`evenload substations`: the live load table."""

import asyncio
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from services.cli.client import connected
from services.cli.output import WIDE, make_console, plain, print_json, text

WARM, FULL = 0.8, 1.0
"""Shares of a limit from which a bar is yellow, and red."""
OLD_AFTER_S = 5.0
"""A table is told each second; one that is this old is no longer live."""


def run(url: str, *, as_json: bool) -> int:
    """Show the load table; raises `GatewayUnusable`."""
    return asyncio.run(_run(url, as_json=as_json))


async def _run(url: str, *, as_json: bool) -> int:
    async with connected(url) as gateway:
        table = await gateway.load_table()
    if as_json:
        print_json(table)
        return 0
    console = make_console()
    if table["items"]:
        console.print(load_table(table["items"], console.width))
    console.print(told(table))
    return 0


def load_table(items: list[dict[str, Any]], width: int) -> Table:
    """The table with a row for each substation; a narrow one tells the status only where one is not Operative."""
    has_zone = any(one.get("zone") for one in items)
    has_status = width >= WIDE or any(status(one).plain != "Operative" for one in items)
    has_bays = any("bays" in one for one in items)
    table = Table(box=box.ROUNDED) if width >= WIDE else Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("substation", no_wrap=True)
    for heading in ("zone",) * has_zone + ("status",) * has_status:
        table.add_column(heading, no_wrap=True)
    for heading in ("sessions", *("bays",) * has_bays, "power"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("demand ÷ limit", "in flight", "reading"):
        table.add_column(heading, justify="right")
    for one in items:
        row = [text(one["substation"])]
        row += [text(one.get("zone") or "–")] * has_zone + [status(one)] * has_status
        row += [Text(f"{one['sessions']}/{one['connectors']}"), *[Text(bays(one))] * has_bays]
        row += [Text(power(one)), share(one.get("utilisation")), Text(in_flight(one)), reading(one)]
        table.add_row(*row)
    return table


def told(table: Mapping[str, Any]) -> Text:
    """Who told the table, and how long ago."""
    age_s = table.get("age_s")
    if not isinstance(age_s, int | float):
        return Text("no balancer has told of any substation yet: ask `evenload doctor` why", "yellow")
    line = f"told by {plain(table.get('balancer'))} {age_s:.1f} s ago"
    if age_s > OLD_AFTER_S:
        return Text(f"{line}: no balancer tells any more, ask `evenload doctor` why", "red")
    return Text(line, "dim")


def status(one: Mapping[str, Any]) -> Text:
    """Operative or not, as the API has it; or that no process holds it."""
    if not one.get("has_lease", True):
        return Text("lost", "red")
    value = one.get("status", "–")
    return text(value, "" if value == "Operative" else "yellow")


def bays(one: Mapping[str, Any]) -> str:
    """Waiting bays that are taken, of how many."""
    return f"{plain(one.get('bays_taken', '–'))}/{plain(one['bays'])}" if "bays" in one else "–"


def power(one: Mapping[str, Any]) -> str:
    """Power at the last reading, of the limit."""
    return f"{one['power_kw']:.0f} of {one['limit_kw']:g} kW"


def share(utilisation: float | None) -> Text:
    """Demand ÷ limit in its colour; a dash where there is no power to give."""
    return Text("–", "dim") if utilisation is None else Text(f"{utilisation:.0%}", level(utilisation))


def level(utilisation: float) -> str:
    """The colour of a share of a limit."""
    return "green" if utilisation < WARM else "yellow" if utilisation <= FULL else "red"


def in_flight(one: Mapping[str, Any]) -> str:
    """What the reading does not show yet: sent there since (+), ended there since (-)."""
    count = one.get("in_flight")
    return f"{count:+d}" if isinstance(count, int) and count else plain("–" if count is None else count)


def reading(one: Mapping[str, Any]) -> Text:
    """The age of the last reading; red where the balancer no longer trusts it."""
    age_s = one.get("reading_age_s")
    words = f"{age_s:.1f} s" if isinstance(age_s, int | float) else "–"
    return Text(words) if one.get("fresh", True) else Text(f"{words}, silent", "red")
