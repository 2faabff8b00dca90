"""`evenload status`: one request in full, or how many are in each state and which are the newest."""

import asyncio

from rich.table import Table
from rich.text import Text

from services.cli.client import connected
from services.cli.output import make_console, print_json
from services.cli.requests_shown import STATES, STYLES, request_page, request_table, seconds


def run_one(url: str, request_id: str, *, as_json: bool) -> int:
    """Show one request; raises `RequestRefused` for an unknown one, `GatewayUnusable`."""
    return asyncio.run(_one(url, request_id, as_json=as_json))


def run_all(url: str, status: str | None, substation: str | None, limit: int, *, as_json: bool) -> int:
    """Show the counts and the newest requests that pass the filters; raises `RequestRefused`, `GatewayUnusable`."""
    return asyncio.run(_all(url, status, substation, limit, as_json=as_json))


async def _one(url: str, request_id: str, *, as_json: bool) -> int:
    async with connected(url) as gateway:
        one = await gateway.request(request_id)
    if as_json:
        print_json(one)
    else:
        make_console().print(request_page(one))
    return 0


async def _all(url: str, status: str | None, substation: str | None, limit: int, *, as_json: bool) -> int:
    async with connected(url) as gateway:
        table = await gateway.load_table()
        items = await gateway.requests(status=status, substation=substation, limit=limit)
    counts, age_s = table.get("requests"), table.get("requests_age_s")
    if as_json:
        print_json({"requests": counts, "requests_age_s": age_s, "items": items})
        return 0
    console = make_console()
    console.print(counts_line(counts))
    if isinstance(counts, dict):
        console.print(Text(f"counted {seconds(age_s)} ago", "dim"))
    console.print()
    console.print(request_table(items, console.width) if items else Text("no request passes the filters", "dim"))
    return 0


def counts_line(counts: object) -> Table | Text:
    """How many requests are in each state, by state in the order of a request's way."""
    if not isinstance(counts, dict):
        return Text("the gateway has not counted the requests yet", "dim")
    table = Table.grid(padding=(0, 2, 0, 0))
    for name in STATES:
        table.add_column(justify="right", style=STYLES[name] if counts.get(name) else "dim")
    table.add_row(*STATES)
    table.add_row(*(f"{counts.get(name, 0):,}" for name in STATES))
    return table
