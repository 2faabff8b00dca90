"""Keeps processes running: starts them, restarts who dies, ends them all."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from services.errors import EvenloadError, Misconfigured
from services.local.lock_watch import LOOK_EVERY_S, STANDS_STILL_S, LockWatch, StandsStill
from services.local.process import ProcessSpec

DEATHS_MAX = 3
DEATHS_WITHIN_S = 30.0
BACKOFF_S = (0.2, 1.0, 3.0)
READY_POLL_S = 0.1
LAST_LINES = 15
EXIT_MISCONFIGURED = 2

Say = Callable[[str], None]


class StackEnded(EvenloadError):
    """The stack cannot go on; the text has the last lines of the culprit's log."""


class Supervisor:
    """Runs processes in sessions of their own, so that a terminal's Ctrl-C reaches only the supervisor."""

    def __init__(self, environment: dict[str, str], say: Say) -> None:
        self._environment = environment
        self._say = say
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._specs: dict[str, ProcessSpec] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._were_ready: set[str] = set()
        self._watches: list[asyncio.Task[None]] = []
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def pids(self) -> dict[str, int]:
        """The pid of each process that runs now."""
        return {name: process.pid for name, process in self._processes.items() if process.returncode is None}

    async def start(self, spec: ProcessSpec) -> None:
        """Start a process, keep it running, and return once it is ready.

        Raises `StackEnded`, or `Misconfigured` with the last words of a service that refuses its settings. After that
        of an optional one the stack can go on.
        """
        self._specs[spec.name] = spec
        _begin_log(spec.log)
        await self._spawn(spec)
        keeper = asyncio.create_task(self._keep(spec))
        self._keepers[spec.name] = keeper
        keeper.add_done_callback(partial(self._note_loss, spec.name) if spec.is_optional else self._note_end)
        await self._until_ready(spec, keeper)
        self._were_ready.add(spec.name)

    def watch_lock(self, lock: Path) -> None:
        """From now on kill whichever of the processes stands still on a lock, and tell of anybody else who does."""
        watch = asyncio.create_task(self._watch(LockWatch(lock)))
        self._watches.append(watch)
        watch.add_done_callback(self._note_end)

    async def until_ended(self) -> None:
        """Wait until the stack cannot go on; raises `StackEnded` or `Misconfigured`."""
        await asyncio.shield(self._ended)

    async def stop(self, last: Sequence[str] = ()) -> None:
        """End all processes with SIGTERM, then SIGKILL for who stays; those in `last` one by one after the others."""
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(self._end(name) for name in self._processes if name not in last))
        # Watched to the end: the last words of the others must not wait for one that is frozen.
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for name in last:
            if name in self._processes:
                await self._end(name)

    async def _spawn(self, spec: ProcessSpec) -> None:
        try:
            with spec.log.open("ab") as log:
                self._processes[spec.name] = await asyncio.create_subprocess_exec(
                    *spec.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=spec.cwd,
                    env=spec.environment_in(os.environ) | self._environment,
                    start_new_session=True,
                )
        except OSError as error:
            raise StackEnded(f"{spec.name} cannot be started: {error.filename or spec.log}: {error.strerror}") from None

    async def _keep(self, spec: ProcessSpec) -> None:
        deaths: list[float] = []
        while True:
            code = await self._processes[spec.name].wait()
            now = time.monotonic()
            deaths = [at for at in deaths if now - at < DEATHS_WITHIN_S] + [now]
            if code == EXIT_MISCONFIGURED and spec.name not in self._were_ready:
                raise Misconfigured(
                    f"{spec.name} refuses to start: {last_lines(spec.log, 1).strip()} (all it said: {spec.log})"
                )
            if len(deaths) >= DEATHS_MAX:
                raise StackEnded(
                    f"{spec.name} died {DEATHS_MAX} times within {DEATHS_WITHIN_S:g} s; its last lines "
                    f"({spec.log}):\n{last_lines(spec.log)}"
                )
            pause_s = BACKOFF_S[min(len(deaths), len(BACKOFF_S)) - 1]
            self._say(f"{spec.name} died ({_say_code(code)}); starting it again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            await self._spawn(spec)

    async def _watch(self, watch: LockWatch) -> None:
        told: StandsStill | None = None
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            found = watch.look(time.monotonic())
            if found is not None and found != told:
                self._say(self._let_go(found))
            told = found

    def _let_go(self, found: StandsStill) -> str:
        """Kill a process of ours that stands still on the lock; returns what to say of it."""
        name = next((name for name, pid in self.pids().items() if pid == found.pid), None)
        who = f"{name or _command(found.pid)} (pid {found.pid})"
        still = f"{who} has stood still on the ledger's lock for {STANDS_STILL_S:g} s, so that nobody can write"
        if found.waits_for_disk:
            return f"{still}: it waits for the disk, which killing it would not end"
        if name is None:
            return f"{still}: it is none of ours, so end it, or let it go on: `kill {found.pid}`"
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, signal.SIGKILL)
        return f"{still}: killing it"

    def _note_end(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled() or self._ended.done():
            return
        error = keeper.exception()
        if error is not None:
            self._ended.set_exception(error)

    def _note_loss(self, name: str, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and name in self._were_ready:
            self._say(f"{keeper.exception()}\ngoing on without {name}")

    async def _until_ready(self, spec: ProcessSpec, keeper: asyncio.Task[None]) -> None:
        give_up_at = time.monotonic() + spec.ready_within_s
        while not await spec.is_ready():
            if self._ended.done():
                await self._ended
            if keeper.done():
                await keeper
            if time.monotonic() > give_up_at:
                raise StackEnded(
                    f"{spec.name} was not ready within {spec.ready_within_s:g} s; its last lines "
                    f"({spec.log}):\n{last_lines(spec.log)}"
                )
            await asyncio.sleep(READY_POLL_S)

    async def _end(self, name: str) -> None:
        process = self._processes[name]
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            # Not by `send_signal`, which first takes the exit code of one that has just ended from who waits for it.
            os.kill(process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(self._specs[name].stops_within_s):
                await process.wait()
        except TimeoutError:
            self._say(f"{name} does not end; killing it")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())[:60]
    return "somebody"


def last_lines(log: Path, most: int = LAST_LINES) -> str:
    """The end of a log file, indented; of a structured line its event and what it says of a cause."""
    try:
        lines = log.read_text("utf-8", errors="replace").splitlines()[-most:]
    except OSError:
        lines = ["(no log)"]
    return "\n".join(f"    {_readable(line)}" for line in lines)


def _readable(line: str) -> str:
    try:
        entry = json.loads(line)
        words = [entry["timestamp"], entry["level"], entry["event"]]
    except (ValueError, KeyError, TypeError):
        return line
    trace = str(entry.get("exception", "")).strip().splitlines()
    return " ".join(str(word) for word in [*words, entry.get("cause", ""), *trace[-1:]] if word)


def _begin_log(log: Path) -> None:
    """A fresh log for a fresh start; the one before it is kept beside."""
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))


def _say_code(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
