"""Options that several commands share, and what a shell may complete them with."""

import asyncio
from typing import Annotated

import typer

from services.cli.client import connected
from services.errors import EvenloadError
from services.settings import LocalSettings, load

COMPLETE_WITHIN_S = 2.0


def gateway_url(url: str) -> str:
    """The address that was given, else that of the gateway which `evenload up` would start here.

    Raises `Misconfigured` for a port that is none.
    """
    return url or f"http://127.0.0.1:{load(LocalSettings).gateway_port}"


def known_substations(incomplete: str) -> list[str]:
    """Ids of the substations that the gateway here knows, for a shell; empty where none answers."""
    try:
        items = asyncio.run(_substations())
    except (EvenloadError, TimeoutError):
        return []
    return [one["substation"] for one in items if one["substation"].startswith(incomplete)]


async def _substations() -> list[dict[str, str]]:
    async with asyncio.timeout(COMPLETE_WITHIN_S), connected(gateway_url("")) as gateway:
        items: list[dict[str, str]] = (await gateway.load_table())["items"]
        return items


Url = Annotated[str, typer.Option("--url", help="The gateway; else the one at EVENLOAD_GATEWAY_PORT here.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON for programs, and nothing else, to standard output.")]
OneSubstation = Annotated[
    str, typer.Argument(metavar="ID", autocompletion=known_substations, help="The substation's id.")
]
Substation = Annotated[
    str | None, typer.Option(autocompletion=known_substations, help="Only requests of this substation.")
]
BrokerConsole = Annotated[
    str,
    typer.Option(
        "--console",
        help="RabbitMQ's console, with EVENLOAD_CONSOLE_USER and _PASSWORD; else that of the stack here.",
        metavar="URL",
    ),
]
