"""`evenload up`: everything on this machine, from nothing to the first rush, until Ctrl-C."""

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from services.admin import port_taken
from services.errors import Misconfigured
from services.grid import Grid, load_grid
from services.ledger.connection import SQLITE_SCHEME
from services.ledger.sqlite import lock_path
from services.local import leftovers
from services.local.first_look import until_seen
from services.local.process import ProcessSpec
from services.local.rabbitmq import HOST, BrokerPorts, PrivateBroker, prepare_broker
from services.local.rabbitmq_programs import find_rabbitmq
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
class Plan:
    """What is started, and under which addresses."""

    settings: LocalSettings
    data: Path
    grid: Grid
    gateway_port: int
    run: str

    @property
    def gateway_url(self) -> str:
        """The HTTP API."""
        return f"http://{HOST}:{self.gateway_port}"

    @property
    def ledger_url(self) -> str:
        """The ledger of all services."""
        return given("EVENLOAD_LEDGER_URL") or f"sqlite:///{self.data / 'ledger.sqlite'}"

    @property
    def logs(self) -> Path:
        """Where each process's output goes."""
        return self.data / "logs"


@dataclass(frozen=True)
class Running:
    """Where a stack that is up is found; the console's and metrics' addresses are None for a broker of one's own."""

    gateway_url: str
    console_url: str | None
    console_password: str | None
    metrics_url: str | None
    data: Path
    logs: Path
    pids: dict[str, int]


def up(settings: LocalSettings, say: Say, announce: Announce, first_rush: FirstRush) -> int:
    """Run the local stack until a signal, and `first_rush` on its gateway; returns the exit code.

    `say` gets a line for each thing that happens, `announce` once where everything is.

    Raises `Misconfigured` where it cannot start, `StackEnded` where it cannot go on.
    """
    plan = _plan(settings)
    with _only_one_in(plan.data):
        left = leftovers.of_other_runs(plan.data, plan.run)
        if left:
            say(f"ending {len(left)} processes that an earlier start left behind")
            leftovers.end(left, LEFTOVER_GRACE_S)
        _refuse_taken_port(plan.gateway_port)
        return asyncio.run(_run(plan, say, announce, first_rush))


def _plan(settings: LocalSettings) -> Plan:
    data = settings.data_dir.resolve()
    try:
        (data / "logs").mkdir(parents=True, exist_ok=True)
        for folder in (data, data / "logs"):
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, f"it belongs to {folder.owner()}")
    except OSError as error:
        raise Misconfigured(f"EVENLOAD_DATA_DIR: {data} cannot be written: {error.strerror}") from None
    for name in ("EVENLOAD_GATEWAY_HOST", "EVENLOAD_ADMIN_HOST"):
        if (given(name) or HOST) != HOST:
            raise Misconfigured(
                f"{name}: the local stack serves on {HOST} only: unset it, or start the services yourself"
            )
    return Plan(settings, data, load_grid(settings.grid), settings.gateway_port, secrets.token_hex(8))


async def _run(plan: Plan, say: Say, announce: Announce, first_rush: FirstRush) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stopping.set)
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
        broker = await _start_broker(plan, supervisor, say)
        await _start_services(plan, supervisor, broker, say)
        announce(_running(plan, supervisor, broker))
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


async def _start_broker(plan: Plan, supervisor: Supervisor, say: Say) -> PrivateBroker | None:
    if given("EVENLOAD_AMQP_URL"):
        say("using the broker of EVENLOAD_AMQP_URL")
        return None
    marks = leftovers.marks(plan.data, plan.run)
    try:
        installation = await asyncio.to_thread(find_rabbitmq, cache_dir(plan.settings), say, marks)
    except asyncio.CancelledError:
        # The thread cannot be told to stop, but what it waits for can.
        leftovers.end(leftovers.of_run(plan.run), 2)
        raise
    broker = prepare_broker(installation, plan.data / "rabbitmq", BrokerPorts(*free_ports(5)))
    say("starting RabbitMQ")
    for spec in broker.processes(plan.logs):
        _begin_log(spec.log)
        await supervisor.start(spec)
    return broker


async def _start_services(plan: Plan, supervisor: Supervisor, broker: PrivateBroker | None, say: Say) -> None:
    say(f"starting gateway, balancer and {len(plan.grid.substation)} substations")
    if plan.ledger_url.startswith(SQLITE_SCHEME):
        supervisor.watch_lock(lock_path(Path(plan.ledger_url.removeprefix(SQLITE_SCHEME))))
    ids = [spec.id for spec in plan.grid.substation]
    names = [("gateway", "gateway", ""), ("balancer", "balancer", "")]
    names += [(f"substation-{one}", "substations", one) for one in ids]
    ports = free_ports(len(names))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
        specs = [
            _service(plan, broker, http, name, package, substation, port)
            for (name, package, substation), port in zip(names, ports, strict=True)
        ]
        for spec in specs:
            _begin_log(spec.log)
        await asyncio.gather(*(supervisor.start(spec) for spec in specs))
        if not await until_seen(http, plan.gateway_url, ids):
            say("the balancer does not see every substation yet: `evenload doctor` tells more")


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


def _running(plan: Plan, supervisor: Supervisor, broker: PrivateBroker | None) -> Running:
    return Running(
        gateway_url=plan.gateway_url,
        console_url=broker.console_url if broker else None,
        console_password=broker.passwords["operator"] if broker else None,
        metrics_url=broker.metrics_url if broker else None,
        data=plan.data,
        logs=plan.logs,
        pids=supervisor.pids(),
    )


def cache_dir(settings: LocalSettings) -> Path:
    """Where unpacked packages are kept, for all checkouts of a user."""
    home_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (no home: no error)
    return (settings.cache_dir or Path(home_cache) / "evenload").absolute()


def free_ports(count: int) -> list[int]:
    """Different TCP ports that are free now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Misconfigured(port_taken(HOST, port, "EVENLOAD_GATEWAY_PORT", error)) from None


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


def _begin_log(log: Path) -> None:
    """A fresh log for a fresh start; the one before it is kept beside."""
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))
