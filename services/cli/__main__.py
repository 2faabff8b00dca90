"""The `evenload` command, and `python -m services.cli`: hears signals before the imports that take long."""

import os
import signal
import sys

from services import signals, surroundings


def main() -> None:
    """Entry point: a signal ends a starting `up` with 0, like a service; Ctrl-C ends any other command with 130."""
    is_stack = sys.argv[1:2] == ["up"]
    is_heard = not is_stack and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_stack:
        signals.leave_at_once()
    elif is_heard:
        signal.signal(signal.SIGINT, lambda _signum, _frame: os._exit(signals.EXIT_INTERRUPTED))
    surroundings.settle("evenload")
    from services.cli.main import main as run

    if is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
