"""What SIGTERM, SIGINT and SIGHUP do while a process starts.

Imported before everything that takes long, so it imports nothing that does. Later the event loop is told instead
(`services.lifecycle.told_of_signals`), without a gap between the two.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
EXIT_INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C ended."""


def leave_at_once() -> None:
    """From now on a signal ends the process with exit code 0: nothing is served yet, so there is nothing to drain.

    Signals that a parent has blocked are let through. So whoever blocks them while it starts a process may send one at
    any moment, even before Python runs its first line.
    """
    handle(lambda _signum, _frame: os._exit(0))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def hear_no_more() -> None:
    """From now on no signal reaches the main thread; call it when the process is about to end.

    It keeps the handlers, because other threads still take signals. To ignore signals instead would be a race: Python
    writes a trace for each that comes while its handler is taken away.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)


def handle(handler: Callable[[int, FrameType | None], object]) -> None:
    """From now on do this for each signal that stops a process."""
    for signum in STOPS:
        # A process that `nohup` started is meant to outlive its terminal.
        if signum is not signal.SIGHUP or signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)
