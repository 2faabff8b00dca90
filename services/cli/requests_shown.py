"""How requests and their history are shown to people."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.cli.output import WIDE, plain, text

STATES = ("accepted", "assigned", "charging", "completed", "stopped", "cancelled", "expired", "failed")
"""In the order of a request's way; the last five are terminal."""
STYLES = {
    "accepted": "yellow",
    "assigned": "cyan",
    "charging": "bold green",
    "completed": "green",
    "stopped": "blue",
    "cancelled": "magenta",
    "expired": "red",
    "failed": "bold red",
}
REQUEST_ID_CHARS = 36
EXCLUDED = {
    "other_zone": "in another zone",
    "inoperative": "out of operation",
    "no_power": "without power to give",
    "bay_only": "with only a bay free",
    "no_place": "without a free connector or bay",
    "stale": "with a stale reading",
}


def state(status: object) -> Text:
    """A state in its colour."""
    return text(status, STYLES.get(str(status), ""))


def clock(at: object) -> str:
    """A time of the API as the local time of day; what is none is shown as it came."""
    try:
        return datetime.fromisoformat(str(at)).astimezone().strftime("%H:%M:%S")
    except ValueError:
        return plain(at)


def energy(one: Mapping[str, Any]) -> str:
    """Delivered of requested energy."""
    return f"{_number(one.get('energy_delivered_kwh'))} of {_number(one.get('energy_requested_kwh'))} kWh"


def seconds(value: object) -> str:
    """A time to wait as people say it, a dash where it is unknown."""
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.0f} s" if value < 120 else f"{value / 60:.0f} min"


def request_table(items: list[dict[str, Any]], width: int) -> Table:
    """A list of requests, newest first; ids stay whole, for they are what one copies."""
    is_wide = width >= WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    if is_wide:
        table.add_column("accepted", no_wrap=True)
    table.add_column("request", no_wrap=True, min_width=REQUEST_ID_CHARS)
    for heading in ("vehicle",) * is_wide + ("state", "substation"):
        table.add_column(heading, overflow="ellipsis", no_wrap=True)
    table.add_column("energy", justify="right", no_wrap=True)
    for one in items:
        table.add_row(
            *[clock(one.get("accepted_at"))] * is_wide,
            text(one.get("request_id")),
            *[text(one.get("vehicle_id"))] * is_wide,
            state(one["status"]),
            text(one.get("substation") or "–"),
            energy(one),
        )
    return table


def request_page(one: Mapping[str, Any]) -> Group:
    """Everything that is told of one request: where it is, its history, why that substation."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("request", text(one["request_id"]))
    facts.add_row("vehicle", text(one.get("vehicle_id")))
    facts.add_row("state", state(one["status"]))
    facts.add_row("substation", text(one["substation"] or "none yet"))
    if one["status"] == "accepted":
        position, wait = one.get("position"), one.get("expected_wait_s")
        facts.add_row("position", text("not known" if position is None else position))
        facts.add_row("expected wait", "not known" if wait is None else seconds(wait))
        facts.add_row("waits until", clock(one.get("wait_until")))
    facts.add_row("energy", f"{energy(one)}, at most {_number(one.get('max_power_kw'))} kW")
    facts.add_row("priority", text(one.get("priority", "–")))
    if one.get("zone"):
        facts.add_row("zone", text(one["zone"]))
    if one.get("depart_by"):
        facts.add_row("departs by", text(one["depart_by"]))
    return Group(facts, *_titled("history", _history(one["history"])), *_decision(one.get("decision")))


def _history(lines: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("at", "state", "substation", "attempt", "reason"):
        table.add_column(heading, justify="right" if heading == "attempt" else "left")
    for line in lines:
        table.add_row(
            clock(line.get("at")),
            state(line.get("status")),
            text(line.get("substation") or "–"),
            text(line.get("attempt")),
            text(line.get("reason")),
        )
    return table


def _decision(decision: object) -> list[RenderableType]:
    if not isinstance(decision, dict):
        return _titled("decision", Text("none yet: no substation has been chosen"))
    chosen = plain(decision.get("substation"))
    why = Text(f"{chosen} had the lowest score by {plain(decision.get('policy'))}")
    tied = decision.get("tied", 1)
    if isinstance(tied, int) and tied > 1:
        why.append(f" (drawn from {tied} with the same)")
    if decision.get("limited_by"):
        why.append(f"; what is scarcest there: {plain(decision['limited_by'])}")
    candidates = [one for one in decision.get("candidates", []) if isinstance(one, dict)]
    shown: list[RenderableType] = [why, _candidates(candidates, chosen)]
    more = decision.get("candidates_total", 0) - len(candidates)
    if more > 0:
        shown.append(Text(f"and {more} more candidates", "dim"))
    excluded = decision.get("excluded") or {}
    if excluded:
        kept_out = ", ".join(f"{count} {EXCLUDED.get(cause, plain(cause))}" for cause, count in excluded.items())
        shown.append(Text(f"kept out: {kept_out}"))
    return _titled("decision", *shown)


def _candidates(candidates: list[dict[str, Any]], chosen: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("candidate")
    for heading in ("score", "demand", "limit", "sessions", "in flight", "reading"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in candidates:
        name = plain(one.get("substation"))
        table.add_row(
            Text(f"▸ {name}" if name == chosen else f"  {name}", "bold" if name == chosen else ""),
            _number(one.get("score")),
            f"{_number(one.get('demand_kw'))} kW",
            f"{_number(one.get('limit_kw'))} kW",
            f"{plain(one.get('sessions'))}/{plain(one.get('connectors'))}",
            text(one.get("in_flight")),
            f"{_number(one.get('reading_age_s'))} s old",
        )
    return table


def _titled(title: str, *shown: RenderableType) -> list[RenderableType]:
    return [Text(""), Text(title, "bold"), *(Padding(one, (0, 0, 0, 2)) for one in shown)]


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".")
    return plain("–" if value is None else value)
