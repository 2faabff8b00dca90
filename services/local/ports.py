"""Free TCP ports for the processes of a local stack."""

import contextlib
import fcntl
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

HOST = "127.0.0.1"
PORTS = range(20_000, 32_000)
"""Linux gives ports above these to outgoing connections, and could take one between our look and our use."""

LOCK_TRIES, LOCK_POLL_S = 300, 0.01


def free_ports(count: int) -> list[int]:
    """Different TCP ports of this machine that are free now.

    The processes of a user take ports in turn, so that two stacks that start at the same time choose different ones.
    """
    with _turn() as descriptor:
        first = _next_port(descriptor)
        ring = (*range(first, PORTS.stop), *range(PORTS.start, first))
        found = list(islice((port for port in ring if _is_free(port)), count))
        if descriptor is not None:
            with contextlib.suppress(OSError):  # a full disk
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, str(found[-1] + 1).encode(), 0)
    return found


@contextlib.contextmanager
def _turn() -> Iterator[int | None]:
    """The locked file that holds the next port; None where it cannot be used."""
    try:
        path = Path(tempfile.gettempdir()) / f"evenload-next-port-{os.getuid()}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield None
        return
    try:
        yield descriptor if _lock(descriptor) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Wait for the lock, which is held for milliseconds; False where a process stands still with it."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(LOCK_POLL_S)
    return False


def _next_port(descriptor: int | None) -> int:
    kept = b"" if descriptor is None else os.pread(descriptor, 8, 0)
    return int(kept) if kept.isdigit() and int(kept) in PORTS else random.choice(PORTS)  # noqa: S311 (no secret)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
