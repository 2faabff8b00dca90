"""A private copy of a tree, in which a line can be broken and tests run."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LEAVE_WITHIN_S = 15.0
"""Time [s] that interrupted tests get to stop the processes that they started."""
WHERE = "import importlib.util as u, sys; print(*(u.find_spec(one).origin for one in sys.argv[1:]), sep='\\n')"


class Unsound(Exception):
    """Something else than a broken line is wrong, so that the outcome of tests says nothing."""


@dataclass(frozen=True)
class Run:
    """A run of tests: pytest's exit code, None where it had to be interrupted, and what it said."""

    code: int | None
    said: str
    seconds: float


class Copy:
    """What git knows of a tree, or would take, with its uncommitted changes, in a folder of its own."""

    def __init__(self, root: Path, home: Path) -> None:
        """Copy; raises `Unsound` where a process that a test starts would run other code than the copy's."""
        self._home = home
        self.tree = home / "tree"
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, names):
            if (root / name).is_file():  # else it was deleted, and git does not know yet
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.tree / name)
        packages = sorted(one.parent.name for one in self.tree.glob("*/__init__.py"))
        # Checked by content: a line is broken and mended within one second, and the time of a file does not tell that.
        compiling = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *packages]
        subprocess.run(compiling, cwd=self.tree, check=True, capture_output=True)
        self._refuse_other_code(packages)

    def _refuse_other_code(self, packages: Sequence[str]) -> None:
        """The environment's own packages are those of the checkout, and services are started with `-P`."""
        asked = [sys.executable, "-P", "-c", WHERE, *packages]
        told = subprocess.run(asked, cwd="/", env=self._environment(), check=True, capture_output=True, text=True)
        foreign = [one for one in told.stdout.splitlines() if not Path(one).is_relative_to(self.tree)]
        if foreign:
            raise Unsound(f"not the copy's code would run, but {', '.join(foreign)}")

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        return kept | {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1"}

    @contextlib.contextmanager
    def broken(self, file: str, find: str, replace: str) -> Iterator[None]:
        """Inside the block `replace` stands in the file where `find` stood; raises `Unsound` where that is not once."""
        path = self.tree / file
        sound = path.read_text() if path.is_file() else ""
        if (found := sound.count(find)) != 1:
            raise Unsound(f"what it replaces stands in {file} {found} times instead of once")
        path.write_text(sound.replace(find, replace))
        try:
            yield
        finally:
            path.write_text(sound)

    async def run(self, tests: Sequence[str], keyword: str, deadline_s: float, *options: str) -> Run:
        """Run those of the copy's tests that the keyword selects, if there is one; whatever happens, they end."""
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", *options]
        command += [f"--basetemp={self._home / 'tmp'}", *(["-k", keyword] if keyword else []), *tests]
        began_at_s = time.monotonic()
        code = None
        # Into a file: a process that outlives its test would keep a pipe open.
        with (self._home / "said").open("w+b") as said:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self.tree,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(deadline_s):
                        code = await process.wait()
            finally:
                if process.returncode is None:
                    await _interrupt(process)
            said.seek(0)
            return Run(code, said.read().decode(errors="replace"), time.monotonic() - began_at_s)


async def _interrupt(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(LEAVE_WITHIN_S):
            await process.wait()
    except TimeoutError:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
