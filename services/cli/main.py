"""`evenload`: the table of its commands; what a command needs is imported when it is called."""

import re
from typing import Annotated, Literal

import typer

from services import streams
from services.cli.options import BrokerConsole, Json, OneSubstation, Substation, Url, gateway_url
from services.cli.output import leave_with

app = typer.Typer(
    name="evenload",
    help="Dispatches EV charge requests across substations on live load.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
State = Literal["accepted", "assigned", "charging", "completed", "stopped", "cancelled", "expired", "failed"]
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(ms|s|m|min|h)?")
_UNITS_S = {"ms": 0.001, "s": 1, None: 1, "m": 60, "min": 60, "h": 3600}


def _duration_s(words: str) -> float:
    match = _DURATION.fullmatch(words)
    if not match or not float(match[1]):
        raise typer.BadParameter(f"give a time like 20s, 500ms or 2m (got {words!r})")
    return float(match[1]) * _UNITS_S[match[2]]


def _known_targets(incomplete: str) -> list[str]:
    from services.cli.break_ import known_targets

    return known_targets(incomplete)


@app.callback()
def _commands() -> None:
    """Dispatches EV charge requests across substations on live load."""


@app.command()
def up(as_json: Json = False) -> None:
    """Start broker, gateway, balancer and substations here, send a first rush, serve until Ctrl-C."""
    from services.cli import up as command

    leave_with(lambda: command.run(as_json=as_json))


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
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Send a rush of equal requests and show how it was distributed."""
    from services.cli import rush as command
    from services.cli.rush_report import RushPlan

    def work() -> int:
        plan = RushPlan(requests, over, energy_kwh, power_kw, until, within, gateway_url(url))
        return command.run(plan, as_json=as_json)

    leave_with(work)


@app.command()
def submit(
    vehicle_id: Annotated[str | None, typer.Option(help="Who wants to charge; generated when absent.")] = None,
    energy_kwh: Annotated[float | None, typer.Option(help="Energy to ask for.", show_default="10")] = None,
    power_kw: Annotated[float | None, typer.Option(help="Most power it can take.", show_default="11")] = None,
    depart_by: Annotated[
        str | None, typer.Option(metavar="TIME", help="Latest departure, RFC 3339 with an offset.")
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Only substations of this zone.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="9 is the most urgent.", show_default="0")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: sent again, it stays one request.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end; exit 0 only if completed.")] = False,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Send one charge request."""
    from services.cli import submit as command

    body = {
        "vehicle_id": vehicle_id,
        "energy_kwh": energy_kwh,
        "max_power_kw": power_kw,
        "depart_by": depart_by,
        "zone": zone,
        "priority": priority,
    }
    leave_with(lambda: command.run(gateway_url(url), body, key, wait=wait, as_json=as_json))


@app.command()
def status(
    request_id: Annotated[str | None, typer.Argument(metavar="ID", help="A request; all when absent.")] = None,
    state: Annotated[State | None, typer.Option("--state", help="Only requests in this state.")] = None,
    substation: Substation = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many of the newest.")] = 10,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Show one request with its history and decision, or the counts by state and the newest requests."""
    from services.cli import status as command

    if request_id is not None and (state or substation):
        raise typer.BadParameter("--state and --substation filter the list: leave the ID out")
    if request_id is None:
        leave_with(lambda: command.run_all(gateway_url(url), state, substation, limit, as_json=as_json))
    leave_with(lambda: command.run_one(gateway_url(url), request_id, as_json=as_json))


@app.command()
def substations(url: Url = "", as_json: Json = False) -> None:
    """Show the live load table."""
    from services.cli import substations as command

    leave_with(lambda: command.run(gateway_url(url), as_json=as_json))


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Show a single frame.")] = False,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Watch substations, counts and changes live, until Ctrl-C; with --json a line each second."""
    from services.cli import top as command

    leave_with(lambda: command.run(gateway_url(url), once=once, as_json=as_json))


@app.command()
def limit(
    substation: OneSubstation,
    power_kw: Annotated[
        float | None, typer.Argument(metavar="KW", min=0, help="Most power of all its sessions together.")
    ] = None,
    lasts_s: Annotated[
        float | None, typer.Option("--for", parser=_duration_s, metavar="TIME", help="How long it holds, like 15m.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="When it lapses, RFC 3339 with an offset.")] = None,
    lift: Annotated[bool, typer.Option("--lift", help="Give the substation its own limit back.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it until it is applied.")] = True,
    within: Annotated[float, typer.Option(min=1, help="Give up following after this many seconds.")] = 30,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Limit the power of a substation, for a time or until the next order."""
    from services.cli import order as command

    if lift == (power_kw is not None):
        raise typer.BadParameter("give the limit in KW, or --lift")
    if until is not None and lasts_s is not None:
        raise typer.BadParameter("choose one of --for and --until")
    if lift and (until is not None or lasts_s is not None):
        raise typer.BadParameter("--lift is for good: leave --for and --until out")
    if lasts_s is not None:
        until = command.lapses_at(lasts_s)
    leave_with(lambda: command.limit(gateway_url(url), substation, power_kw, until, within, wait=wait, as_json=as_json))


@app.command()
def drain(
    substation: OneSubstation,
    back: Annotated[bool, typer.Option("--return", help="Let it take vehicles again.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow it until the substation is empty.")] = True,
    within: Annotated[float, typer.Option(min=1, help="Give up following after this many seconds.")] = 900,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Let a substation's sessions finish and send nobody more; or let it return."""
    from services.cli import order as command

    status = "Operative" if back else "Inoperative"
    leave_with(lambda: command.operational(gateway_url(url), substation, status, within, wait=wait, as_json=as_json))


@app.command("break")
def break_(
    target: Annotated[
        str, typer.Argument(metavar="ID", autocompletion=_known_targets, help="A service or substation of `make run`.")
    ],
    kill: Annotated[bool, typer.Option("--kill", help="Kill it (the default); the stack starts it again.")] = False,
    freeze: Annotated[
        float | None, typer.Option(parser=_duration_s, metavar="TIME", help="Stop it for a time, like 20s, then go on.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Kill or freeze a process of the local stack, and see what the others make of it."""
    from services.cli import break_ as command

    if kill and freeze is not None:
        raise typer.BadParameter("choose one of --kill and --freeze")
    if freeze is None:
        leave_with(lambda: command.kill(target, as_json=as_json))
    leave_with(lambda: command.freeze(target, freeze, as_json=as_json))


@app.command()
def dead(
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many of the oldest.")] = 50,
    console: BrokerConsole = "",
    as_json: Json = False,
) -> None:
    """List the messages that nobody could read or handle, with the reason; they stay where they lie."""
    from services.cli import dead as command

    leave_with(lambda: command.run(console, limit, as_json=as_json))


@app.command()
def mend(console: BrokerConsole = "", as_json: Json = False) -> None:
    """Make what is missing at the broker (exchanges, queues, bindings, policies, rights); takes nothing away."""
    from services.cli import mend as command

    leave_with(lambda: command.run(console, as_json=as_json))


@app.command()
def doctor(url: Url = "", console: BrokerConsole = "", as_json: Json = False) -> None:
    """Check the setup, the ledger and a running stack, and tell the cure of each fault; changes nothing."""
    from services.cli import doctor as command

    leave_with(lambda: command.run(url, console, as_json=as_json))


def main() -> None:
    """Parse the command line and do as it says; called by `services.cli.__main__`."""
    streams.prepare()
    app(prog_name="evenload")
