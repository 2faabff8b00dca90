"""`evenload`: start the local stack, send a rush."""

import contextlib
import io
import os
import sys
from functools import partial
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from services.cli import rush as rushing
from services.cli.rush_report import RushPlan, make_console
from services.errors import Misconfigured
from services.settings import LocalSettings, load, refuse_unknown

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2

app = typer.Typer(
    name="evenload",
    help="Dispatches EV charge requests across substations on live load.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Dispatches EV charge requests across substations on live load."""


@app.command()
def up() -> None:
    """Start broker, gateway, balancer and substations here, send a first rush, serve until Ctrl-C."""
    from services.local.stack import up as stack_up
    from services.local.supervisor import StackEnded

    try:
        refuse_unknown(os.environ, None)
        console = make_console()
        code = stack_up(load(LocalSettings), partial(_say, console), partial(rushing.first_rush, console))
    except Misconfigured as error:
        _fail(str(error), EXIT_MISCONFIGURED)
    except StackEnded as error:
        _fail(str(error), EXIT_FAILED)
    sys.exit(code)


@app.command()
def rush(
    requests: Annotated[int, typer.Option(min=1, max=100_000, help="How many requests.")] = 120,
    over: Annotated[float, typer.Option(min=0, max=86_400, help="Seconds to spread them over.")] = 10,
    energy_kwh: Annotated[float, typer.Option(help="Energy each asks for.")] = 6,
    power_kw: Annotated[float, typer.Option(help="Most power each can take.")] = 11,
    until: Annotated[
        Literal["claimed", "ended"], typer.Option(help="Return when all are claimed, or ended.")
    ] = "claimed",
    within: Annotated[float, typer.Option(min=1, help="Give up after this many seconds.")] = 900,
    url: Annotated[str, typer.Option(help="The gateway; else the one at EVENLOAD_GATEWAY_PORT here.")] = "",
) -> None:
    """Send a rush of equal requests and show how it was distributed."""
    try:
        url = url or f"http://127.0.0.1:{load(LocalSettings).gateway_port}"
        plan = RushPlan(requests, over, energy_kwh, power_kw, until, within, url)
        sys.exit(rushing.run(plan))
    except rushing.GatewayUnusable as error:
        _fail(str(error), EXIT_FAILED)
    except Misconfigured as error:
        _fail(str(error), EXIT_MISCONFIGURED)
    except KeyboardInterrupt:
        sys.exit(130)


def _say(console: Console, line: str) -> None:
    with contextlib.suppress(OSError):  # whoever read this has gone; the stack need not
        console.print(line, markup=False, soft_wrap=True)


def _fail(text: str, code: int) -> NoReturn:
    print(f"evenload: {text}", file=sys.stderr, flush=True)  # noqa: T201
    sys.exit(code)


def main() -> None:
    """Entry point of the `evenload` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an old locale must not end a rush at a "÷"
    app()


if __name__ == "__main__":
    main()
