"""One process of a stack that is broken: kept running by the tests' own supervisor, unless it was told to stay away."""

import asyncio
import os
import signal
from dataclasses import dataclass, field

import psutil
from harness.chaos_schedule import SERVICES

from services.clock import monotonic_s
from services.local.process import ProcessSpec
from services.signals import STOPS

RESTART_AFTER_S = 0.3
READY_WITHIN_S = 120.0


def _block_signals() -> None:
    """Before a service's program runs: it lets them through in its first line, and so ends in order at any moment."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


@dataclass(frozen=True)
class Death:
    """A process that ended: how, and whether somebody had killed it."""

    name: str
    at_s: float
    code: int
    was_killed: bool


@dataclass(eq=False)
class Part:
    """The process, and how to break it."""

    spec: ProcessSpec
    marks: dict[str, str]
    leaves_within_s: float
    """After SIGTERM; later it is killed, which is a fault."""
    deaths: list[Death] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _running: asyncio.Event = field(default_factory=asyncio.Event)
    _kills: set[int] = field(default_factory=set)
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
            with self.spec.log.open("ab") as log:
                process = self._process = await asyncio.create_subprocess_exec(
                    *self.spec.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.spec.cwd,
                    env=self.environment,
                    start_new_session=True,
                    preexec_fn=_block_signals if self.spec.name in SERVICES else None,
                )
            self._running.set()
            code = await process.wait()
            self._running.clear()
            self.deaths.append(Death(self.spec.name, monotonic_s(), code, process.pid in self._kills))
            await asyncio.sleep(RESTART_AFTER_S)

    def process(self) -> psutil.Process | None:
        """The process as it runs now."""
        if self._process is None or self._process.returncode is not None:
            return None
        return psutil.Process(self._process.pid)

    def signal(self, signum: signal.Signals) -> None:
        """Signal it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            if signum is signal.SIGKILL:
                self._kills.add(self._process.pid)
            self._process.send_signal(signum)

    async def kill(self) -> None:
        """SIGKILL; returns once it is dead."""
        process = self._process
        self.signal(signal.SIGKILL)
        if process is not None:
            await process.wait()
            self._running.clear()

    def come(self) -> None:
        """Run again."""
        self._wanted.set()

    async def until_it_runs(self) -> None:
        """Return once a process runs; it may not be ready yet."""
        async with asyncio.timeout(READY_WITHIN_S):
            await self._running.wait()

    def stay_away(self) -> None:
        """Do not start it again when it ends."""
        self._wanted.clear()

    async def leave(self) -> str | None:
        """SIGTERM, and stay away; returns what was wrong with its end."""
        self.stay_away()
        process = self._process
        if process is None or process.returncode is not None:
            return None
        began_at_s = monotonic_s()
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self.leaves_within_s):
                code = await process.wait()
        except TimeoutError:
            await self.kill()
            return f"still there {self.leaves_within_s:g} s after SIGTERM"
        finally:
            self._running.clear()
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
