"""Keeps what fails in a loop from flooding the log: a line for each kind and period, and how many were left out.

No fault may make a service write more than a few dozen lines a second: nobody would find the cause among them, and the
disk that fills up would be the next fault.
"""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

PERIOD_S = 10.0
"""A warning or an error of one kind is written once in this time."""
KINDS_MAX = 1_000
"""Kinds that are remembered at once; beyond, a kind may be written more often."""
LINES_PER_S_MAX = 50
"""Of all kinds together, in one second."""
INFO_MAX = 50
"""Lines of one event below a warning that are written in a period, because these tell what was done."""


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

    def admit(self, kind: Hashable, most: int = 1) -> int | None:
        """None for a line that is left out, else how many of its kind were left out since the last one.

        `most` lines of a kind are written in a period, the first of them at once.
        """
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
        if known.written >= most or self._written >= LINES_PER_S_MAX:
            known.suppressed += 1
            return None
        known.written += 1
        self._written += 1
        suppressed, known.suppressed = known.suppressed, 0
        return suppressed
