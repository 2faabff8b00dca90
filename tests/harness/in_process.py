"""A program's entry point, run in the test's own process to its end, and nothing of it stays there."""

import contextlib
import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import structlog

from services.settings import PREFIX
from services.signals import STOPS

TIDY_WITHIN_S = 10


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it wrote to standard output and standard error."""

    code: object
    output: str
    errors: str


def run_to_end(main: Callable[[], None], settings: Mapping[str, str], capfd: pytest.CaptureFixture[str]) -> Ended:
    """Run `main` with these `EVENLOAD_…` variables and no others until it exits."""
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch, logging_restored(), _nothing_left(), _signals_restored():
        for name in [one for one in os.environ if one.startswith(PREFIX)]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        patch.setattr(os, "_exit", _raise_exit)
        with pytest.raises(SystemExit) as ended:
            contextvars.copy_context().run(main)  # the names on every log line stay in the copy
    return Ended(ended.value.code, *capfd.readouterr())


def _raise_exit(code: int) -> NoReturn:
    """A service ends its process at once, and here that is the tests' process."""
    raise SystemExit(code)


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """Let a service configure the logs of this process, and give the tests theirs back."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in ("", *root.manager.loggerDict)}
    root.handlers.clear()  # a service closes those that it finds
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for name in ("", *root.manager.loggerDict):
            logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
        structlog.reset_defaults()


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    """A program hears no signals at its end, and leaves open the pipe that told it of them; a test must not."""
    before = {signum: signal.getsignal(signum) for signum in STOPS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    wakeup = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        tells = signal.set_wakeup_fd(wakeup)
        pipe = {link for kind, link in _open_files() if kind == str(tells)}
        for descriptor in [kind for kind, link in _open_files() if link in pipe]:
            os.close(int(descriptor))
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _nothing_left() -> Iterator[None]:
    """Fail where the block leaves a thread, an open file or a socket behind."""
    before = _held()
    yield
    give_up_at = time.monotonic() + TIDY_WITHIN_S
    while left := _held() - before:  # the thread that closes the ledger may end a moment later
        assert time.monotonic() < give_up_at, left
        time.sleep(0.005)


def _held() -> set[tuple[str, object]]:
    return {("thread", one) for one in threading.enumerate()} | set(_open_files())


def _open_files() -> Iterator[tuple[str, object]]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one by which this folder was read
            yield descriptor.name, descriptor.readlink()
