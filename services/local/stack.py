"""`evenload up`: everything on this machine, from nothing to the first rush, until Ctrl-C."""

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from services.admin import port_taken
from services.errors import Misconfigured
from services.files import cure_of, describe, named_file
from services.ledger.sqlite_files import lock_path
from services.lifecycle import told_of_signals
from services.local import leftovers
from services.local.first_look import until_seen
from services.local.folders import cache_dir
from services.local.plan import Plan, make_plan
from services.local.ports import HOST, free_ports
from services.local.process import ProcessSpec
from services.local.prometheus import Prometheus, Scraped
from services.local.rabbitmq import BrokerPorts, PrivateBroker, prepare_broker
from services.local.rabbitmq_programs import RabbitInstallation, find_rabbitmq
from services.local.supervisor import Say, StackEnded, Supervisor
from services.settings import FILE_SUFFIX, LocalSettings, given

FirstRush = Callable[[str], Coroutine[Any, Any, None]]
"""Sends a rush to the gateway at an address and shows it; ends by itself."""

Announce = Callable[["Running"], None]
"""Tells where a stack that is up is found."""

PYTHON_MODULE = (sys.executable, "-P", "-m")
"""-P: a file in the user's folder must not stand in for one of our modules."""
LEFTOVER_GRACE_S = 8.0


@dataclass(frozen=True)
class Running:
    """Where a stack that is up is found.

    The console's and metrics' addresses are None for a broker of one's own, Prometheus' where there is none.
    """

    gateway_url: str
    console_url: str | None
    console_password: str | None
    metrics_url: str | None
    prometheus_url: str | None
    data: Path
    logs: Path
    pids: dict[str, int]


def up(settings: LocalSettings, say: Say, announce: Announce, first_rush: FirstRush) -> int:
    """Run the local stack until a signal, and `first_rush` on its gateway; returns the exit code.

    `say` gets a line for each thing that happens, `announce` once where everything is.

    Raises `Misconfigured` where it cannot start, `StackEnded` where it cannot go on.
    """
    plan = make_plan(settings)
    with _files_named(plan.data), _only_one_in(plan.data):
        left = leftovers.of_other_runs(plan.data, plan.run)
        if left:
            say(f"ending {len(left)} processes that an earlier start left behind")
            leftovers.end(left, LEFTOVER_GRACE_S)
        _refuse_taken_port(plan.gateway_port)
        return asyncio.run(_run(plan, say, announce, first_rush))


async def _run(plan: Plan, say: Say, announce: Announce, first_rush: FirstRush) -> int:
    stopping = asyncio.Event()
    with told_of_signals(stopping.set):
        return await _until_told(stopping, plan, say, announce, first_rush)


async def _until_told(stopping: asyncio.Event, plan: Plan, say: Say, announce: Announce, first_rush: FirstRush) -> int:
    working = asyncio.create_task(_work(plan, say, announce, first_rush))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not working.done():
        say("stopping")
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        say("everything is down; requests that were accepted go on at the next start")
        return 0
    await working
    return 0


async def _work(plan: Plan, say: Say, announce: Announce, first_rush: FirstRush) -> None:
    async with _supervised(plan, say) as supervisor:
        installation = await _find_broker(plan, say)
        # Only now: what is unpacked waits for one another, and the broker takes longest to start.
        async with Prometheus(plan, supervisor, say) as prometheus:
            broker = await _start_broker(plan, supervisor, installation, say) if installation else None
            admin_ports = await _start_services(plan, supervisor, broker, say)
            prometheus_url = await prometheus.start(_scraped(plan, admin_ports, broker), *free_ports(1))
            announce(_running(plan, supervisor, broker, prometheus_url))
            await _rush_until_ended(plan, supervisor, first_rush)


async def _rush_until_ended(plan: Plan, supervisor: Supervisor, first_rush: FirstRush) -> None:
    ended = asyncio.create_task(supervisor.until_ended())
    rush = asyncio.create_task(first_rush(plan.gateway_url)) if plan.settings.first_rush else None
    try:
        await ended
    finally:
        ended.cancel()
        if rush is not None:
            rush.cancel()
            await asyncio.gather(rush, return_exceptions=True)


@contextlib.asynccontextmanager
async def _supervised(plan: Plan, say: Say) -> AsyncIterator[Supervisor]:
    guardian = await asyncio.create_subprocess_exec(
        *PYTHON_MODULE,
        "services.local.guardian",
        plan.run,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    if guardian.stdout is None or not await guardian.stdout.readline():
        raise StackEnded("the guardian, which ends the stack should this process be killed, does not start")
    supervisor = Supervisor(leftovers.marks(plan.data, plan.run), say)
    try:
        yield supervisor
    finally:
        # Services first: they write their last words to the ledger and settle with the broker.
        await supervisor.stop(last=("rabbitmq", "epmd"))
        if guardian.stdin is not None:
            guardian.stdin.close()
        await guardian.wait()


async def _find_broker(plan: Plan, say: Say) -> RabbitInstallation | None:
    if given("EVENLOAD_AMQP_URL"):
        say("using the broker of EVENLOAD_AMQP_URL")
        return None
    marks = leftovers.marks(plan.data, plan.run)
    try:
        return await asyncio.to_thread(find_rabbitmq, cache_dir(plan.settings), say, marks)
    except asyncio.CancelledError:
        # The thread cannot be told to stop, but what it waits for can.
        leftovers.end(leftovers.of_run(plan.run), 2)
        raise


async def _start_broker(
    plan: Plan, supervisor: Supervisor, installation: RabbitInstallation, say: Say
) -> PrivateBroker:
    broker = prepare_broker(installation, plan.data / "rabbitmq", BrokerPorts(*free_ports(5)))
    say("starting RabbitMQ")
    for spec in broker.processes(plan.logs):
        await supervisor.start(spec)
    return broker


async def _start_services(
    plan: Plan, supervisor: Supervisor, broker: PrivateBroker | None, say: Say
) -> Mapping[str, int]:
    """Start them all; returns their admin ports by name."""
    say(f"starting gateway, balancer and {len(plan.grid.substation)} substations")
    if plan.ledger_path is not None:
        supervisor.watch_lock(lock_path(plan.ledger_path))
    ids = [spec.id for spec in plan.grid.substation]
    names = [("gateway", "gateway", ""), ("balancer", "balancer", "")]
    names += [(f"substation-{one}", "substations", one) for one in ids]
    ports = free_ports(len(names))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
        specs = [
            _service(plan, broker, http, name, package, substation, port)
            for (name, package, substation), port in zip(names, ports, strict=True)
        ]
        await asyncio.gather(*(supervisor.start(spec) for spec in specs))
        if not await until_seen(http, plan.gateway_url, ids):
            say("the balancer does not see every substation yet: `evenload doctor` tells more")
    return {name: port for (name, _, _), port in zip(names, ports, strict=True)}


def _service(
    plan: Plan,
    broker: PrivateBroker | None,
    http: aiohttp.ClientSession,
    name: str,
    package: str,
    substation: str,
    port: int,
) -> ProcessSpec:
    async def is_ready() -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with http.get(f"http://{HOST}:{port}/readyz") as response:
                return response.status == 200
        return False

    environment = {
        "EVENLOAD_INSTANCE": name,
        "EVENLOAD_ADMIN_PORT": str(port),
        "EVENLOAD_LEDGER_URL": plan.ledger_url,
        "EVENLOAD_GRID": plan.settings.grid,
        "EVENLOAD_LOG_FORMAT": "json",
    }
    if package == "gateway":
        environment["EVENLOAD_GATEWAY_PORT"] = str(plan.gateway_port)
    if package == "substations":
        environment["EVENLOAD_SUBSTATION_IDS"] = substation
    if broker is not None:
        environment["EVENLOAD_AMQP_URL"] = broker.amqp_url(package.removesuffix("s"))
    # A file that the user names in the place of one of these is not asked again, and would win.
    environment |= {name + FILE_SUFFIX: "" for name in environment}
    return ProcessSpec(
        name=name,
        argv=(*PYTHON_MODULE, package),
        environment=environment,
        log=plan.logs / f"{name}.log",
        is_ready=is_ready,
    )


def _scraped(plan: Plan, admin_ports: Mapping[str, int], broker: PrivateBroker | None) -> Scraped:
    return Scraped(
        gateway_url=plan.gateway_url,
        gateway=f"{HOST}:{admin_ports['gateway']}",
        balancer=f"{HOST}:{admin_ports['balancer']}",
        rabbitmq=f"{HOST}:{broker.ports.metrics}" if broker else None,
    )


def _running(plan: Plan, supervisor: Supervisor, broker: PrivateBroker | None, prometheus_url: str | None) -> Running:
    return Running(
        gateway_url=plan.gateway_url,
        console_url=broker.console_url if broker else None,
        console_password=broker.passwords["operator"] if broker else None,
        metrics_url=broker.metrics_url if broker else None,
        prometheus_url=prometheus_url,
        data=plan.data,
        logs=plan.logs,
        pids=supervisor.pids(),
    )


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Misconfigured(port_taken(HOST, port, "EVENLOAD_GATEWAY_PORT", error)) from None


@contextlib.contextmanager
def _files_named(data: Path) -> Iterator[None]:
    """Raise `Misconfigured` with the cause and the cure where a file in the data folder cannot be used."""
    try:
        yield
    except OSError as error:
        path = named_file(error)
        if path is None or not path.is_relative_to(data):
            raise
        cure = cure_of(error, of_rights="give it to this user, or name a folder of your own")
        raise Misconfigured(f"EVENLOAD_DATA_DIR: {describe(error, path)}: {cure}") from None


@contextlib.contextmanager
def _only_one_in(data: Path) -> Iterator[None]:
    """Hold the data folder's lock; raises `Misconfigured` naming the pid that has it."""
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(descriptor, 32).decode().strip() or "unknown"
            raise Misconfigured(
                f"a stack already runs from {data} (pid {pid}): stop it with Ctrl-C or `kill {pid}`, "
                "or give this one EVENLOAD_DATA_DIR and EVENLOAD_GATEWAY_PORT of its own"
            ) from None
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
