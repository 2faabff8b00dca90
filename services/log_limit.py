"""Keeps what fails in a loop from flooding the log: a line for each kind and period, and how many were left out.

No fault may make a service write more than a few dozen lines a second: nobody would find the cause among them, and the
disk that fills up would be the next fault.
"""

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

PERIOD_S = 10.0
"""A share's `kind_max` lines of one kind are written in this time."""
KINDS_MAX = 1_000
"""Kinds that are remembered at once; beyond, a kind may be written more often."""


class Share(NamedTuple):
    """How many lines of a level are written at most."""

    kind_max: int
    """Of one kind, in a period."""
    second_max: int
    """Such a line is written only while fewer lines, of all levels, were written in this second."""


INFO = Share(50, 30)
"""These tell what was done, so many of a kind are written; but they leave room for faults that are told only once."""
WARNING = Share(1, 40)
ERROR = Share(1, 50)


def share_of(level: int) -> Share:
    """The share of a level of the standard library's `logging`."""
    if level < logging.WARNING:
        return INFO
    return WARNING if level < logging.ERROR else ERROR


@dataclass(slots=True)
class _Kind:
    """What was written of a kind in its period, and what was left out since its last line."""

    began_at_s: float
    written: int = 0
    suppressed: int = 0


class LogLimit:
    """Decides for each line whether it is written. Threads may share it: at worst a count is off by one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}
        self._second = 0
        self._written = 0

    def admit(self, kind: Hashable, share: Share = ERROR) -> int | None:
        """None for a line that is left out, else how many of its kind were left out since the last one."""
        now_s = self._clock()
        known = self._kinds.get(kind)
        if known is None:
            if len(self._kinds) >= KINDS_MAX:
                self._kinds = {one: of for one, of in self._kinds.items() if now_s - of.began_at_s < PERIOD_S}
                if len(self._kinds) >= KINDS_MAX:
                    self._kinds.clear()
            known = self._kinds[kind] = _Kind(now_s)
        elif now_s - known.began_at_s >= PERIOD_S:
            known.began_at_s, known.written = now_s, 0
        if self._second != int(now_s):
            self._second, self._written = int(now_s), 0
        if known.written >= share.kind_max or self._written >= share.second_max:
            known.suppressed += 1
            return None
        known.written += 1
        self._written += 1
        suppressed, known.suppressed = known.suppressed, 0
        return suppressed
