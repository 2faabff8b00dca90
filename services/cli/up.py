"""`evenload up`: the local stack, told to people or to programs."""

import contextlib
import os
from functools import partial

from rich.console import Console

from services.cli import rush
from services.cli.output import make_console, print_json
from services.local import stack
from services.local.supervisor import Say
from services.service_links import service_links
from services.settings import LocalSettings, load, refuse_unknown


def run(*, as_json: bool) -> int:
    """Run the stack until a signal; returns the exit code, raises `Misconfigured` and `StackEnded`.

    `as_json` writes one object once it is up, and everything else to standard error.
    """
    refuse_unknown(os.environ, None)
    console = make_console(stderr=as_json)
    say = partial(_say, console)
    ignored = service_links(os.environ)
    if ignored:
        say(f"ignoring variables that an orchestrator wrote for its services: {', '.join(ignored)}")
    announce = _announce if as_json else partial(_tell, say)
    return stack.up(load(LocalSettings), say, announce, partial(rush.first_rush, console))


def _say(console: Console, line: str) -> None:
    with contextlib.suppress(OSError):  # whoever read this has gone; the stack need not
        console.print(line, markup=False, soft_wrap=True)


def _tell(say: Say, running: stack.Running) -> None:
    say("")
    say(f"  gateway            {running.gateway_url}   (POST /charge-requests, GET /substations)")
    if running.console_url is not None:
        say(f"  RabbitMQ console   {running.console_url}   login operator / {running.console_password}")
        say(f"  RabbitMQ metrics   {running.metrics_url}")
    if running.prometheus_url is not None:
        say(f"  Prometheus         {running.prometheus_url}")
    say(f"  data and logs      {running.data}   {running.logs}")
    say("  pids               " + "  ".join(f"{name} {pid}" for name, pid in running.pids.items()))
    say("")


def _announce(running: stack.Running) -> None:
    console = running.console_url and {
        "url": running.console_url,
        "user": "operator",
        "password": running.console_password,
    }
    with contextlib.suppress(OSError):
        print_json(
            {
                "gateway_url": running.gateway_url,
                "rabbitmq_console": console,
                "rabbitmq_metrics_url": running.metrics_url,
                "prometheus_url": running.prometheus_url,
                "data": str(running.data),
                "logs": str(running.logs),
                "supervisor_pid": os.getpid(),
                "pids": running.pids,
            }
        )
