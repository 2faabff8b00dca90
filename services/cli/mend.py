"""`evenload mend`: makes what is missing at the broker, and grants the rights that its users lack; takes nothing away.

A substation makes its own queue and binding. All else needs an administrator, which no service is.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from rich.table import Table
from rich.text import Text

from services.broker import topology
from services.cli.broker_parts import Part, Shown, compare, look, rights_to_grant
from services.cli.console import ADMINISTRATOR, Console, ConsoleRefused
from services.cli.console_search import find_console
from services.cli.output import EXIT_FAILED, make_console, print_json, text
from services.errors import Misconfigured

IMPORTED = {"exchange": "exchanges", "queue": "queues", "binding": "bindings", "policy": "policies"}
"""What is loaded as one definitions file: each kind of thing, and the file's word for it."""


@dataclass(frozen=True, slots=True)
class Mended:
    """One thing, and what became of it: `was there`, `made`, or `not made` because of `said`, which `cure` cures."""

    kind: str
    name: str
    outcome: str
    said: str = ""
    cure: str = ""

    def as_json(self) -> dict[str, str]:
        """The line for programs."""
        told = {"kind": self.kind, "name": self.name, "outcome": self.outcome}
        return told | ({"said": self.said, "cure": self.cure} if self.said else {})


def run(console_url: str, *, as_json: bool) -> int:
    """Mend, and tell of each thing; returns 0 where the broker has all, 1 where something could not be made.

    Raises `Misconfigured` for a malformed address or a user without administrator rights, else `ConsoleUnusable`.
    """
    try:
        console = find_console(console_url)
        items = asyncio.run(mend(console))
    except ConsoleRefused as error:
        raise Misconfigured(str(error)) from None
    is_whole = all(one.outcome != "not made" for one in items)
    if as_json:
        print_json({"console": console.url, "vhost": console.vhost, "items": [one.as_json() for one in items]})
    else:
        _show(items, is_whole=is_whole)
    return 0 if is_whole else EXIT_FAILED


async def mend(console: Console) -> list[Mended]:
    """Make what is missing; raises `ConsoleUnusable`."""
    if ADMINISTRATOR not in await console.tags():
        raise ConsoleRefused(
            f"user {console.user!r} is no administrator at the console at {console.url}: "
            "set EVENLOAD_CONSOLE_USER and EVENLOAD_CONSOLE_PASSWORD to one"
        )
    reasons: dict[str, str | None] = {}
    shown = await look(console)
    began_with = before = _compare(console, shown)
    if not shown.has_vhost:
        reasons["vhost"] = await console.change("PUT", "/api/vhosts/{vhost}", {})
        shown = await look(console)
        before = _compare(console, shown)
    wrong = {(one.kind, one.name) for one in before if one.is_mendable}
    # First, because whoever declares something needs the right to it.
    for user in [name for kind, name in wrong if kind == "rights"]:
        body = rights_to_grant(user, shown)
        reason = await console.change("PUT", f"/api/permissions/{{vhost}}/{quote(user, safe='')}", body)
        reasons["rights"] = reasons.get("rights") or reason
    definitions = {word: _missing(kind, wrong) for kind, word in IMPORTED.items()}
    if any(definitions.values()):
        reason = await console.change("POST", "/api/definitions/{vhost}", definitions)
        reasons |= dict.fromkeys(IMPORTED, reason)
    were_wrong = {(one.kind, one.name) for one in began_with if one.fault} | wrong
    return [_became(one, were_wrong, reasons.get(one.kind)) for one in _compare(console, await look(console))]


def _compare(console: Console, shown: Shown) -> list[Part]:
    return compare(shown, are_users_ours=console.is_own)


def _missing(kind: str, wrong: set[tuple[str, str]]) -> list[dict[str, object]]:
    """The definitions of those things of a kind that are wrong."""
    return [one for one in topology.topology()[IMPORTED[kind]] if (kind, _name(kind, one)) in wrong]


def _name(kind: str, one: dict[str, object]) -> str:
    return f"{one['source']} → {one['destination']}" if kind == "binding" else str(one["name"])


def _became(part: Part, were_wrong: set[tuple[str, str]], reason: str | None) -> Mended:
    if not part.fault:
        return Mended(part.kind, part.name, "made" if (part.kind, part.name) in were_wrong else "was there")
    said = part.fault + (f": {reason}" if reason and part.is_mendable else "")
    return Mended(part.kind, part.name, "not made", said, part.cure or "see the broker's log")


def _show(items: Sequence[Mended], *, is_whole: bool) -> None:
    screen = make_console()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    styles = {"was there": "dim", "made": "green", "not made": "red"}
    for one in items:
        table.add_row(text(one.kind), text(one.name), Text(one.outcome, styles[one.outcome]))
    screen.print(table)
    for one in items:
        if one.said:
            screen.print(text(f"{one.said}: {one.cure}", "yellow"))
    made = sum(one.outcome == "made" for one in items)
    if not is_whole:
        screen.print(Text("not all could be made", "red"))
    else:
        screen.print(Text(f"made {made}, the rest was there" if made else "all was there, nothing to make", "green"))
