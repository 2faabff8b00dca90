"""`evenload dead`: what lies in the graveyard of the broker, and why; read by its console, and put back."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from services.broker import topology
from services.cli.console_search import find_console
from services.cli.output import make_console, plain, print_json, text
from services.cli.requests_shown import seconds
from services.errors import InvalidMessage
from services.messages import parse_strict_json
from services.timestamps import rfc3339

BODY_SHOWN = 200
"""Signs of a body that are shown."""
REASONS = {
    "delivery_limit": "returned more often than the delivery limit allows",
    "rejected": "rejected by its consumer",
    "maxlen": "its queue was full",
    "expired": "it was too old",
}
"""What the broker calls its own reasons."""


def run(console_url: str, limit: int, *, as_json: bool) -> int:
    """List the oldest messages in the graveyard; raises `ConsoleUnusable`."""
    console = find_console(console_url)
    messages, total = asyncio.run(console.peek(topology.GRAVEYARD, limit))
    now_ms = round(time.time() * 1000)
    items = [described(one, now_ms) for one in messages]
    if as_json:
        print_json({"queue": topology.GRAVEYARD, "messages": total, "items": items})
        return 0
    screen = make_console()
    if not items:
        screen.print(Text(f"nothing lies in {topology.GRAVEYARD}", "green"))
        return 0
    screen.print(_table(items))
    left = f", of which the {len(items)} oldest are shown; see --limit" if total > len(items) else ""
    screen.print(Text(f"{total:,} in {topology.GRAVEYARD}{left}", "dim"))
    return 0


def described(message: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """A message of the console's as a line for people and programs; nothing in it is believed, all of it escaped.

    Services wrap what they quarantine in a note; what the broker itself gave up tells so in its `x-death` header.
    """
    body, size = str(message.get("payload", "")), message.get("payload_bytes")
    note = _note(body)
    death = _death(message)
    if note is not None:
        reason, queue, at_ms = note.get("fault"), note.get("queue"), note.get("at_ms")
        body, size = str(note.get("body", "")), note.get("bytes")
    else:
        reason, queue, at_ms = death.get("reason"), death.get("queue"), _milliseconds(death.get("time"))
        reason = REASONS.get(str(reason), reason)
    at = _told_time(at_ms)
    return {
        "reason": plain(reason or "unknown"),
        "queue": plain(queue or "unknown"),
        "at": at,
        "age_s": None if at is None or not isinstance(at_ms, int) else max(0.0, round((now_ms - at_ms) / 1000, 1)),
        "bytes": size if isinstance(size, int) else None,
        "body": plain(body[:BODY_SHOWN]),
    }


def _note(body: str) -> dict[str, Any] | None:
    try:
        note = parse_strict_json(body.encode("utf-8", "surrogatepass"))
    except InvalidMessage:
        return None
    return note if isinstance(note, dict) and {"queue", "fault", "body"} <= note.keys() else None


def _death(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The newest entry of the broker's own record, or an empty one."""
    found: Any = message
    for step in ("properties", "headers", "x-death"):
        found = found.get(step) if isinstance(found, dict) else None
    first = found[0] if isinstance(found, list) and found else None
    return first if isinstance(first, dict) else {}


def _milliseconds(at_s: object) -> int | None:
    return at_s * 1000 if isinstance(at_s, int) else None


def _told_time(at_ms: object) -> str | None:
    try:
        return rfc3339(at_ms) if isinstance(at_ms, int) else None
    except (ValueError, OverflowError, OSError):
        return None


def _table(items: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("age", justify="right", no_wrap=True)
    table.add_column("from queue", no_wrap=True)
    table.add_column("reason", overflow="fold", ratio=2)
    table.add_column("body", overflow="fold", ratio=3)
    for one in items:
        cut = "…" if one["bytes"] is not None and one["bytes"] > BODY_SHOWN else ""
        table.add_row(
            Text(seconds(one["age_s"])), text(one["queue"]), text(one["reason"]), text(one["body"] + cut, "dim")
        )
    return table
