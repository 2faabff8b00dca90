"""The life of a service: settings, ready, work, drain, exit code.

Exit codes: 0 drained after a signal, or left before it was ready; 1 crashed; 2 misconfigured (one line on standard
error says how).
"""

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from prometheus_client import CollectorRegistry

from services import signals, streams
from services.admin import AdminServer
from services.clock import monotonic_s
from services.errors import EvenloadError, Misconfigured
from services.logs import configure_logs, get_logger, name_logs
from services.metrics import ServiceMetrics
from services.service_links import CURE, service_links
from services.settings import CommonSettings, Settings, load_for_service

log = get_logger(__name__)

DRAIN_DEADLINE_S = 7.0
LEAVE_DEADLINE_S = 1.0
"""For a service that was never ready: it has nothing to drain."""
LAST_MOMENT_S = 0.5
"""For what a drain that was cut short still closes. With the drain it stays below the 8 s after which we are killed."""
ACCEPT_FAULT_S = 10.0
"""How long a service is unready after a connection could not be accepted."""
FILES_MAX = 65_536
"""Open files that a service asks for, where its hard limit lets it."""
OwnSettings = TypeVar("OwnSettings", bound=Settings)
Outcome = TypeVar("Outcome")


@dataclass
class Life:
    """What a service is given to live with: its name, registry, admin port and the signal to stop."""

    service: str
    instance: str
    common: CommonSettings
    metrics: ServiceMetrics
    admin: AdminServer
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    has_begun: bool = False
    """Whether it has work that a signal must let it finish, ready or not."""
    _accept_failed_at_s: float | None = None
    _accept_cause: str = ""
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _crash: asyncio.Future[BaseException] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @contextlib.asynccontextmanager
    async def background(self, *work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Run coroutines while the block runs; one that ends, however, ends the service with exit code 1.

        Those that are cancelled at the end of the block may end as they like, unless they meet a bug.
        """
        is_leaving = False

        def note_end(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if self._crash.done() or (is_leaving and not is_bug(error)):
                return
            self._crash.set_result(error or RuntimeError(f"{task.get_coro()} ended by itself"))

        tasks = [asyncio.create_task(one) for one in work]
        for task in tasks:
            task.add_done_callback(note_end)
        try:
            yield
        finally:
            is_leaving = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def crash(self) -> BaseException | None:
        """What ended a background coroutine too early; None while all of them run."""
        return self._crash.result() if self._crash.done() else None

    def rename(self, instance: str) -> None:
        """Go by another name from now on: one that was not known at the start."""
        self.instance = instance
        name_logs(self.service, instance)

    def note_loop_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the event loop cannot tell anybody else: a line each, where the loop itself would write traces."""
        error, port = context.get("exception"), context.get("socket")
        if port is not None and isinstance(error, OSError):
            self._accept_failed_at_s, self._accept_cause = monotonic_s(), error.strerror or str(error)
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.warning(
                "connection_not_accepted", port=port.getsockname()[1], files_max=limit, cause=self._accept_cause
            )
        else:
            log.error("loop_callback_failed", cause=context.get("message"), exc_info=error)

    def accept_fault(self) -> str | None:
        """Why connections were not accepted lately; None while all is well."""
        if self._accept_failed_at_s is None or monotonic_s() - self._accept_failed_at_s > ACCEPT_FAULT_S:
            return None
        return f"connections cannot be accepted: {self._accept_cause}"

    async def wait_for(self, work: Coroutine[Any, Any, Outcome]) -> Outcome | None:
        """What `work` returns; None where a signal came first. Raises what it raised, or the background did."""
        happened = asyncio.create_task(work)
        stopped = asyncio.create_task(self.stopping.wait())
        try:
            awaited: set[asyncio.Future[Any]] = {happened, stopped, self._crash}
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not happened.done():
                happened.cancel()
                await asyncio.wait({happened})
        self._raise_crash()
        return None if happened.cancelled() else await happened

    async def serve_until_stopped(self) -> None:
        """Be ready until a signal comes, unless it has come; raises what a background coroutine raised."""
        self._raise_crash()
        if self.stopping.is_set():
            return
        self.admin.ready = self.has_begun = True
        log.info("service_ready", admin_url=self.admin.url)
        stopped = asyncio.create_task(self.stopping.wait())
        stopped.add_done_callback(lambda _: self._over.set())
        self._crash.add_done_callback(lambda _: self._over.set())
        try:
            await self._over.wait()
        finally:
            # Unready before the drain, so that nobody sends work to a process that is leaving.
            self.admin.ready = False
            stopped.cancel()
        self._raise_crash()
        log.info("drain_started")

    def _raise_crash(self) -> None:
        if self.crash is not None:
            raise self.crash


def is_bug(error: BaseException | None) -> bool:
    """Whether an error is a fault of the program: not of its settings, and not the absence of a neighbour."""
    return error is not None and not isinstance(error, EvenloadError)


Serve = Callable[[Life, OwnSettings], Awaitable[None]]


def run(service: str, own_type: type[OwnSettings], serve: Serve[OwnSettings]) -> NoReturn:
    """Run a service until it is told to stop, and leave the process with its exit code."""
    streams.prepare()
    _raise_file_limit()
    try:
        common, own = load_for_service(own_type)
    except Misconfigured as error:
        refuse(service, error)
    instance = common.instance_name(service)
    configure_logs(service, instance, common.log_level, common.log_format)
    ignored = service_links(os.environ)
    if ignored:
        log.info("service_links_ignored", variables=ignored, cure=CURE)
    with asyncio.Runner() as runner:
        # Inside the block: at its end the runner would wait for every thread.
        _leave(runner.run(_live(service, instance, common, own, serve)))


def refuse(service: str, error: Misconfigured) -> NoReturn:
    """Say in one line why the process does not start, and exit with code 2."""
    _say(f"{service}: {error}")
    _leave(2)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a full disk under it
        print(line, file=sys.stderr)  # noqa: T201 (people read this, not log tools)


def _leave(code: int) -> NoReturn:
    """End the process now. Python's own end would wait for threads that ask a silent name server or database."""
    streams.flush()
    os._exit(code)


def _raise_file_limit() -> None:
    """A connection takes a file descriptor, and the soft limit is made for programs that know no more than 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _live(
    service: str, instance: str, common: CommonSettings, own: OwnSettings, serve: Serve[OwnSettings]
) -> int:
    registry = CollectorRegistry()
    life = Life(service, instance, common, ServiceMetrics(service, registry), AdminServer(registry))
    asyncio.get_running_loop().set_exception_handler(life.note_loop_fault)
    life.admin.faults.append(life.accept_fault)
    with told_of_signals(life.stopping.set):
        return await _until_over(life, own, serve)


async def _until_over(life: Life, own: OwnSettings, serve: Serve[OwnSettings]) -> int:
    working = asyncio.create_task(_serve(life, own, serve))
    stopped = asyncio.create_task(life.stopping.wait())
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    deadline_s = DRAIN_DEADLINE_S if life.has_begun else LEAVE_DEADLINE_S
    await asyncio.wait({working}, timeout=deadline_s)
    if not working.done():
        log.warning("drain_cut_short", deadline_s=deadline_s)
        working.cancel()
        await asyncio.wait({working}, timeout=LAST_MOMENT_S)
    name_logs(life.service, life.instance)
    is_whole = working.done() and not working.cancelled()
    raised = working.exception() if is_whole else None
    error = life.crash or raised  # the crash came first
    if life.stopping.is_set() and not life.has_begun and not is_bug(error):
        # There was nothing to drain, whatever it was waiting for.
        log.info("service_left_before_it_was_ready", cause=None if error is None else repr(error))
        return 0
    if error is not None:
        return _exit_code(life.service, error)
    if not is_whole:
        return 1  # what was not drained in time is no orderly end
    log.info("service_drained")
    return 0


async def _serve(life: Life, own: OwnSettings, serve: Serve[OwnSettings]) -> None:
    try:
        await life.admin.start(life.common.admin_host, life.common.admin_port)
        await serve(life, own)
    finally:
        await life.admin.stop()


def _exit_code(service: str, error: BaseException) -> int:
    if isinstance(error, Misconfigured):
        log.error("service_misconfigured", cause=str(error))
        _say(f"{service}: {error}")
        return 2
    log.error("service_crashed", exc_info=error)
    return 1


@contextlib.contextmanager
def told_of_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Let the running loop call `stop` for each signal while the block runs; after it the process hears none.

    The loop's own handlers would not do: it removes them when it is closed, and a second, late signal would then be
    what ends the process.

    Use it once in a process, which must end soon after the block. The pipe stays open until then: another thread may
    still take a signal, and Python would write a trace where it could not write to the pipe.
    """
    loop = asyncio.get_running_loop()
    hears, tells = os.pipe()

    def hear() -> None:
        os.read(hears, 4096)
        stop()

    for end in (hears, tells):
        os.set_blocking(end, False)
    loop.add_reader(hears, hear)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    signals.handle(lambda _signum, _frame: None)
    try:
        yield
    finally:
        signals.hear_no_more()
        loop.remove_reader(hears)
