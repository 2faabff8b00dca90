"""The doctor's look at what runs: the stack's processes, the gateway's port, gateway, balancer, substations."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from services.admin import free_port
from services.cli.checks import Check, misconfigured, note, ok, problem
from services.cli.client import connected
from services.cli.substations import OLD_AFTER_S
from services.errors import EvenloadError
from services.local import leftovers
from services.local.ports import HOST
from services.local.running import RunningStack
from services.settings import LocalSettings

EXPECTED = ("gateway", "balancer")


def check_processes(stack: RunningStack | None, data: Path) -> Iterator[Check]:
    """The supervisor and its processes."""
    if stack is None:
        left = leftovers.of_folder(data)
        if left:
            pids = ", ".join(str(one.pid) for one in left)
            yield problem("stack", f"none runs, but an earlier one left pids {pids}", "`make run` ends them and starts")
        else:
            yield note("stack", f"none runs from {data}", "start one with `make run`")
        return
    yield ok("stack", f"runs, pid {stack.supervisor_pid}")
    missing = [one for one in EXPECTED if one not in stack.processes]
    for one in missing:
        yield problem("processes", f"{one} is not there", f"wait, it may be starting; else see {data}/logs/{one}.log")
    stopped = [(name, one.pid) for name, one in stack.processes.items() if _is_stopped(one)]
    for name, pid in stopped:
        yield problem("processes", f"{name} (pid {pid}) is frozen", f"let it go on: `kill -CONT {pid}`")
    if not missing and not stopped:
        yield ok("processes", ", ".join(stack.processes))


def check_port(stack: RunningStack | None, settings: LocalSettings, *, has_gateway: bool) -> Check:
    """Tell which process has the gateway's port; `has_gateway` means that some gateway answers there."""
    port = settings.gateway_port
    if stack is not None:
        has = stack.environment("gateway").get("EVENLOAD_GATEWAY_PORT", str(port))
        if has != str(port):
            cure = f"set EVENLOAD_GATEWAY_PORT={has} here, too"
            return problem("port", f"the stack's gateway has port {has}, this shell asks port {port}", cure)
        return ok("port", f"{port}, the stack's gateway")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            cure = f"stop it, or set EVENLOAD_GATEWAY_PORT={free_port(HOST)}, which is free"
            if has_gateway:
                return note(
                    "port", f"{port} has the gateway of another stack, perhaps of compose", f"to `make run`, {cure}"
                )
            return misconfigured("port", f"{port} is taken by {_listener(port)} ({error.strerror})", cure)
    return ok("port", f"{port} is free")


async def check_gateway(url: str, registered: list[str], *, is_expected: bool) -> list[Check]:
    """Whether the gateway answers, and what its load table tells of balancers and substations.

    None may be running here, unless it `is_expected`.
    """
    try:
        async with connected(url) as gateway:
            table = await gateway.load_table()
    except EvenloadError as error:
        cause, _, cure = str(error).rpartition(": ")
        return [problem("gateway", cause, cure) if is_expected else note("gateway", cause, cure)]
    return [ok("gateway", f"answers at {url}"), _balancer(table), _substations(table["items"], registered)]


def _balancer(table: dict[str, Any]) -> Check:
    cure = "is a balancer running, and the broker? its log tells more"
    age_s = table.get("age_s")
    if not isinstance(age_s, int | float):
        return problem("balancer", "none has told of any load yet", cure)
    said = f"{table.get('balancer')} told the load table {age_s:.1f} s ago"
    return ok("balancer", said) if age_s <= OLD_AFTER_S else problem("balancer", said, cure)


def _substations(items: list[dict[str, Any]], registered: list[str]) -> Check:
    silent = [f"{one['substation']} ({one.get('reading_age_s')} s)" for one in items if not one.get("fresh", True)]
    silent += [one for one in registered if one not in {line["substation"] for line in items}]
    if silent:
        cure = "is its process running, or frozen? it gets no new requests until it answers"
        return problem("substations", f"silent: {', '.join(silent)}", cure)
    if not items:
        return problem("substations", "nobody knows any", "start `python -m substations`, or `make run`")
    return ok("substations", f"all of {len(items)} answer")


def _is_stopped(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() == psutil.STATUS_STOPPED
    return False


def _listener(port: int) -> str:
    """Who listens on a port, as far as one may know."""
    with contextlib.suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid:
                return f"pid {one.pid} ({' '.join(psutil.Process(one.pid).cmdline())[:60]})"
    return "somebody else"
