"""A disk without room for a running stack, and room again: a real one where one may mount it, else a limit."""

import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from harness.stack import Stack

SIZE = "24m"


class MountedDisk:
    """A small file system of its own, filled up by a file."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self, _stack: Stack | None = None) -> None:
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (1 << 16, 1 << 9, 1):
                with until_full():
                    while True:
                        ballast.write(b"\0" * size)

    def free(self, _stack: Stack | None = None) -> None:
        self._ballast.unlink()


class LimitedFiles:
    """No service may write beyond the first byte of any file; who started a process may limit it so."""

    def fill(self, stack: Stack) -> None:
        self._limit(stack, 1)

    def free(self, stack: Stack) -> None:
        self._limit(stack, resource.RLIM_INFINITY)

    def _limit(self, stack: Stack, most: int) -> None:
        for process in stack.processes():
            if process.environ().get("EVENLOAD_INSTANCE"):
                process.rlimit(psutil.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


@contextmanager
def until_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


@contextmanager
def limited(folder: Path) -> Iterator[LimitedFiles]:
    """A folder on whatever disk it is."""
    folder.mkdir()
    yield LimitedFiles()


@contextmanager
def mounted(folder: Path, size: str = SIZE) -> Iterator[MountedDisk | LimitedFiles]:
    """A small disk of its own at `folder`; as `limited` where this user may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "evenload-tests", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        yield LimitedFiles()
        return
    try:
        yield MountedDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
