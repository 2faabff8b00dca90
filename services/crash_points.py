"""Named places at which a process can be told to kill itself, because random kills rarely hit the moment that matters.

`EVENLOAD_CRASH_POINT=gateway.committed` makes the process end by SIGKILL when it first passes there,
`gateway.committed:3` when it passes for the third time. For tests; unset it costs one comparison.
"""

import os
import signal

VARIABLE = "EVENLOAD_CRASH_POINT"
NAMES = (
    "gateway.committed",  # the rows are durable, nobody was answered
    "gateway.replied",  # the answers have left, nothing is published
    "gateway.published",
    "balancer.chosen",  # and reserved, nothing is written
    "balancer.assigned",  # written, not published
    "balancer.published",  # not acked
    "substation.claimed",  # by the ledger, not begun
    "substation.started",  # nothing acked
    "substation.ended",  # by the ledger, the connector not free
    "substation.settled",  # told to leave: nothing charges any more, the lease is held
    "heartbeat.sent",
    "heartbeat.applied",  # by the ledger, nothing of the answer taken over
    "sweep.read",  # between the sweep's look and its compare-and-set
    "sweep.swept",
)


def parse(text: str) -> tuple[str, int]:
    """Name and pass of `name` or `name:count`; raises `ValueError` with the known names."""
    name, colon, count = text.partition(":")
    if name not in NAMES or (colon and not (count.isascii() and count.isdecimal() and int(count) > 0)):
        raise ValueError(f"a crash point is needed, like gateway.committed or gateway.committed:3: {', '.join(NAMES)}")
    return name, int(count or 1)


def _armed() -> tuple[str | None, int]:
    try:
        return parse(os.environ[VARIABLE])
    except (KeyError, ValueError):  # a wrong name is refused with the other settings
        return None, 0


_name, _passes_left = _armed()


def crash_point(name: str) -> None:
    """End this process at once where it was told to."""
    if name == _name:
        _pass()


def _pass() -> None:
    global _passes_left  # noqa: PLW0603 (a process crashes once)
    _passes_left -= 1
    if _passes_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
