"""Finds who stands still on a lock: a process that holds it and does nothing keeps everybody else from going on.

Only the kernel's own lists are read, so that the holders pay nothing for being watched. A holder stands still when none
of its threads has run between two looks: a long transaction that moves on never does.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from services.local import locks

LOOK_EVERY_S = 0.25
STANDS_STILL_S = 3.0
"""A commit takes milliseconds. With a heartbeat each second, a lease of five is kept by all whom the holder blocks."""


@dataclass(frozen=True)
class StandsStill:
    """A holder that has done nothing for long."""

    pid: int
    """0 where the kernel does not tell: a process of another container."""
    waits_for_disk: bool
    """In a wait that no signal ends."""


class LockWatch:
    """Looks at one lock, again and again."""

    def __init__(self, lock: Path, stands_still_s: float = STANDS_STILL_S) -> None:
        self._lock = lock
        self._stands_still_s = stands_still_s
        self._last: tuple[int, int] | None = None
        self._last_look_s = 0.0
        self._still_s = 0.0

    def look(self, now_s: float) -> StandsStill | None:
        """The holder, once it has stood still for long enough; `now_s` is a monotonic clock's reading, in seconds."""
        # Of a holder in another container no pid is told, and nothing can be seen of what it does.
        pid = min((one for one in locks.holders(self._lock) if one > 0), default=None)
        seen = None if pid is None else (pid, _activity(pid))
        if seen is None or seen != self._last:
            self._still_s = 0.0
        else:
            # Was the watcher itself kept from looking, then perhaps the holder too, and by the same cause.
            self._still_s += min(now_s - self._last_look_s, 2 * LOOK_EVERY_S)
        self._last, self._last_look_s = seen, now_s
        if pid is None or self._still_s < self._stands_still_s:
            return None
        return StandsStill(pid, _waits_for_disk(pid))


def _activity(pid: int) -> int:
    """How often the threads of a process have left a processor: stands still while none of them runs."""
    return sum(
        int(line.split()[1])
        for text in _of_threads(pid, "status")
        for line in text.splitlines()
        if line.startswith(("voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"))
    ) + sum(int(ticks) for text in _of_threads(pid, "stat") for ticks in _after_name(text)[11:13])


def _waits_for_disk(pid: int) -> bool:
    return any(_after_name(text)[:1] == ["D"] for text in _of_threads(pid, "stat"))


def _after_name(stat: str) -> list[str]:
    """The fields of `/proc/…/stat` from the state on; the name before it may hold anything."""
    return stat.rpartition(")")[2].split()


def _of_threads(pid: int, name: str) -> list[str]:
    texts = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                texts.append((task / name).read_text(errors="replace"))
    return texts
