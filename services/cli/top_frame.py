"""One frame of `evenload top`: fitted to the height of the terminal."""

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli.output import WIDE, plain, text
from services.cli.requests_shown import clock, state
from services.cli.status import counts_line
from services.cli.substations import bays, in_flight, level, power, reading, share, told
from services.cli.watching import Watch
from services.clock import monotonic_s

ROWS_BESIDE = 11
"""Lines of a frame that are neither substations nor changes."""
CHANGES_AT_LEAST = 4
CHANGES_UNBOUNDED = 10


def frame(watch: Watch, url: str, fault: str, width: int, height: int | None) -> Group:
    """The whole picture; `height` None leaves it as long as it is."""
    items = list(watch.table["items"])
    room = len(items) if height is None else max(1, height - ROWS_BESIDE - CHANGES_AT_LEAST)
    shown = items if len(items) <= room else sorted(items, key=_busiest_first)[: room - 1]
    used = len(shown) + (len(shown) < len(items))
    changes = CHANGES_UNBOUNDED if height is None else max(1, height - ROWS_BESIDE - used)
    parts: list[RenderableType] = [
        _heading(watch, url, fault, width),
        Text(""),
        counts_line(watch.table.get("requests")),
        _rates(watch),
        Text(""),
        _substations(shown, width),
    ]
    if len(shown) < len(items):
        parts.append(Text(f"  and {len(items) - len(shown)} less busy ones: `evenload substations`", "dim"))
    parts += [Text(""), _changes(watch, changes)]
    return Group(*parts)


def _heading(watch: Watch, url: str, fault: str, width: int) -> RenderableType:
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    line.add_column(no_wrap=True, justify="right")
    if fault:
        line.add_row(text(fault, "bold red"), time.strftime("  %H:%M:%S"))
        return line
    place = f"  {plain(url)}  " if width >= WIDE else "  "
    line.add_row(Text.assemble(("evenload top", "bold"), place, told(watch.table)), time.strftime("  %H:%M:%S"))
    return line


def _rates(watch: Watch) -> Text:
    accepted, ended = ("–" if one is None else f"{one:.1f}" for one in watch.rates())
    return Text(f"{accepted} accepted/s   {ended} ended/s", "bold")


def _substations(items: list[dict[str, Any]], width: int) -> RenderableType:
    if not items:
        return Text("no substation is known yet", "yellow")
    with_bays = any("bays" in one for one in items)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    table.add_column("substation", no_wrap=True, overflow="ellipsis", max_width=24 if width >= WIDE else 14)
    table.add_column("demand ÷ limit", ratio=1, min_width=8, no_wrap=True, overflow="ellipsis")
    for heading in ("", "power", "sessions", *(["bays"] if with_bays else []), "in flight", "reading"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in items:
        utilisation = one["utilisation"] or 0.0
        colour = level(utilisation)
        bar = ProgressBar(
            total=1.0, completed=min(1.0, utilisation), complete_style=colour, finished_style=colour, style="grey30"
        )
        name = text(one["substation"]) if one.get("status") == "Operative" else text(f"{one['substation']} ✗", "yellow")
        row: list[RenderableType] = [name, bar, share(one["utilisation"]), power(one)]
        row += [f"{one['sessions']}/{one['connectors']}", *([bays(one)] if with_bays else [])]
        table.add_row(*row, in_flight(one), reading(one))
    return table


def _changes(watch: Watch, rows: int) -> RenderableType:
    """The latest changes that were seen; while there are few, the newest requests below them."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("newest", "request", "vehicle", "state", "substation"):
        table.add_column(heading, no_wrap=True, overflow="ellipsis")
    for change in list(watch.changes)[:rows]:
        way = Text() if change.before is None else text(change.before, "dim").append(" → ", "dim")
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(time.time() - (monotonic_s() - change.seen_at_s))),
            text(change.request_id[:8]),
            text(change.vehicle_id),
            way + state(change.status),
            text(change.substation or "–"),
        )
    for one in watch.newest[: max(0, rows - len(watch.changes))]:
        table.add_row(
            clock(one.get("accepted_at")),
            text(str(one.get("request_id"))[:8]),
            text(one.get("vehicle_id")),
            state(one["status"]),
            text(one.get("substation") or "–"),
        )
    return table if table.rows else Text("no request yet: send one with `evenload submit`, or `evenload rush`", "dim")


def _busiest_first(one: dict[str, Any]) -> float:
    return -(one["utilisation"] or 0.0)
