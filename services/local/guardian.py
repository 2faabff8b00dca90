"""Ends a run's processes when its supervisor is gone, whatever killed it: `python -m services.local.guardian RUN`.

The supervisor holds the other end of this process's standard input, and the kernel closes it with the supervisor.
"""

import signal
import sys

GRACE_S = 8.0


def main() -> None:
    """Wait for the end of standard input, then end whatever of the run is left."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    from services.local import leftovers  # takes long, and a signal must not end the guardian meanwhile

    print("watching", flush=True)  # noqa: T201 (the supervisor waits for it)
    sys.stdin.buffer.read()
    leftovers.end(leftovers.of_run(sys.argv[1]), GRACE_S)
    # What started while the others were ending, a restart in a process's own hands, say.
    leftovers.end(leftovers.of_run(sys.argv[1]), 0)


if __name__ == "__main__":
    main()
