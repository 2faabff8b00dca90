"""One process of a stack that is broken: kept running by the tests' own supervisor, unless it was told to stay away."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psutil
from harness.chaos_schedule import SERVICES

from services.clock import monotonic_s
from services.local.process import ProcessSpec
from services.signals import STOPS

RESTART_AFTER_S = 0.3
READY_WITHIN_S = 120.0


WAITING = ThreadPoolExecutor(64, thread_name_prefix="waits-for-a-part")
"""A thread for each part that runs. Others that use threads do not have to wait for them."""


@dataclass(frozen=True)
class Death:
    """A process that ended: how, and whether somebody had killed it or told it to end."""

    name: str
    at_s: float
    code: int
    was_killed: bool = False
    was_told: bool = False

    @property
    def is_sound(self) -> bool:
        return (self.was_killed and self.code == -signal.SIGKILL) or (self.was_told and self.code == 0)


@dataclass(eq=False)
class Part:
    """The process, and how to break it."""

    spec: ProcessSpec
    marks: dict[str, str]
    leaves_within_s: float
    """After SIGTERM; later it is killed, which is a fault."""
    deaths: list[Death] = field(default_factory=list)
    _process: subprocess.Popen[bytes] | None = None
    _ended: asyncio.Future[int] | None = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _running: asyncio.Event = field(default_factory=asyncio.Event)
    _sent: set[signal.Signals] = field(default_factory=set)
    """What this process was sent."""
    _keeper: asyncio.Task[None] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return self.spec.environment_in(os.environ) | self.marks

    async def start(self) -> None:
        """Keep it running from now on; returns once it is ready."""
        self.come()
        self._keeper = asyncio.create_task(self._keep())
        async with asyncio.timeout(READY_WITHIN_S):
            while not await self.spec.is_ready():
                assert not self._keeper.done(), self._keeper
                await asyncio.sleep(0.1)

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            self._sent.clear()
            process = self._process = self._spawn()
            self._ended = asyncio.get_running_loop().run_in_executor(WAITING, process.wait)
            self._running.set()
            code = await asyncio.shield(self._ended)
            self._running.clear()
            was_killed, was_told = signal.SIGKILL in self._sent, signal.SIGTERM in self._sent
            self.deaths.append(Death(self.spec.name, monotonic_s(), code, was_killed, was_told))
            await asyncio.sleep(RESTART_AFTER_S)

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the program, without an await: no other program is started while signals are blocked here.

        A service lets them through in its first line, and so ends in order whenever it is told to.
        """
        blocked = STOPS if self.spec.name in SERVICES else ()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        try:
            with self.spec.log.open("ab") as log:
                return subprocess.Popen(
                    self.spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.spec.cwd,
                    env=self.environment,
                    start_new_session=True,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def runs(self) -> bool:
        """Whether a process runs, ready or not."""
        return self._running.is_set()

    def process(self) -> psutil.Process:
        """The process that runs, or ran last. Raises `psutil.NoSuchProcess`."""
        assert self._process is not None, f"{self.spec.name} was never started"
        return psutil.Process(self._process.pid)

    def signal(self, signum: signal.Signals) -> None:
        """Signal it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._sent.add(signum)
            self._process.send_signal(signum)

    def kill(self) -> Coroutine[Any, Any, None]:
        """SIGKILL, sent before this returns; what it returns is to be awaited, and waits until the process is dead."""
        self.signal(signal.SIGKILL)
        return _until_dead(self._ended)

    def come(self) -> None:
        """Run again."""
        self._wanted.set()

    async def until_it_runs(self) -> None:
        """Return once a process runs; it may not be ready yet. Raises `TimeoutError`."""
        async with asyncio.timeout(READY_WITHIN_S):
            await self._running.wait()

    def stay_away(self) -> None:
        """Do not start it again when it ends."""
        self._wanted.clear()

    async def leave(self) -> str | None:
        """SIGTERM, and stay away; returns what was wrong with its end."""
        self.stay_away()
        if not self.runs or self._ended is None:
            return None
        began_at_s = monotonic_s()
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.leaves_within_s):
                code = await asyncio.shield(self._ended)
        except TimeoutError:
            await self.kill()
            return f"still there {self.leaves_within_s:g} s after SIGTERM"
        if code == 0:
            return None
        return f"exit code {code}, {monotonic_s() - began_at_s:.1f} s after SIGTERM"

    async def stop(self) -> str | None:
        """Leave for good."""
        said = await self.leave()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        return said


async def _until_dead(ended: asyncio.Future[int] | None) -> None:
    if ended is not None:
        await asyncio.shield(ended)  # several may wait, and any of them may be cancelled


async def until_all_run(parts: Sequence[Part]) -> None:
    """Return in a moment at which each of them runs, so that all can be broken at once. Raises `TimeoutError`."""
    while not all(one.runs for one in parts):
        await asyncio.gather(*(one.until_it_runs() for one in parts))
