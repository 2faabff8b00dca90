"""Which substation a process takes that was given no id: the first that nobody holds, or one more; pure.

Whether somebody holds one is known by watching: a lease that moves is held by somebody alive, one that has stood still
for a lease and a fifth by nobody any more. Until either is seen it is undecided, and the process goes no further down
the list: its holder may be the process that this one succeeds, whose sessions had better go on where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

from services.grid import Grid, extra_id
from services.ledger.leases import Lease, SilenceWatch, silence_s

BEATS_UNTIL_MISSED = 1.5
"""A holder that lives has renewed its lease by then, unless it is late."""


class Standing(StrEnum):
    """How a substation stands, for who looks for one; also why it is taken."""

    NEW = "nobody ever held it"
    LEFT = "its holder left in order"
    LOST = "its holder was given up"
    SILENT = "its holder has fallen silent"
    UNDECIDED = "its holder may be alive or not"
    ALIVE = "its holder is alive"
    EXTRA = "all others are held"

    @property
    def is_free(self) -> bool:
        """Whether it may be taken now."""
        return self not in (Standing.UNDECIDED, Standing.ALIVE)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do after a look: take a substation, or, where it is undecided, look again."""

    substation: str
    standing: Standing
    heir_of: tuple[str, ...] = ()
    """Substations of which to be noted as heir: their holder has missed a beat.

    Each process is noted once for each, also in another's place: who came first takes one first, and is heir of the
    others no more, while who came later still waits for them.
    """


class Chooser:
    """Decides for one process, by all that it has seen of the leases on its own clock."""

    def __init__(self, grid: Grid, *, lease_s: float, heartbeat_s: float) -> None:
        self._grid = grid
        self._lease_s = lease_s
        self._missed_s = BEATS_UNTIL_MISSED * heartbeat_s
        self._watch = SilenceWatch(lease_s)
        self._first: dict[str, Lease] = {}
        self._last_s: float | None = None
        self._noted: set[str] = set()

    def choose(self, leases: Sequence[Lease], replied_at_s: float) -> Choice:
        """Decide by what a read of all leases showed whose reply came at `replied_at_s`."""
        seen = {one.substation: one for one in leases}
        if self._last_s is None or replied_at_s - self._last_s > self._lease_s / 2:
            self._first = seen  # who did not look cannot tell that somebody lives
        self._last_s = replied_at_s
        silent_s = self._watch.observe(leases, replied_at_s)
        candidates = self._grid.candidates(seen)
        standings = {one: self._standing(seen.get(one), silent_s.get(one, 0.0)) for one in candidates}
        for one, standing in standings.items():
            if standing.is_free:
                return Choice(one, standing)
            if standing is Standing.UNDECIDED:
                missing = [
                    other
                    for other, how in standings.items()
                    if how is Standing.UNDECIDED and silent_s[other] >= self._missed_s
                ]
                to_note = [other for other in missing if seen[other].heir is None or other not in self._noted]
                self._noted = set(missing)
                return Choice(one, standing, tuple(to_note))
        number = next(number for number in count(1) if extra_id(number) not in standings)
        return Choice(extra_id(number), Standing.EXTRA)

    def _standing(self, lease: Lease | None, silent_s: float) -> Standing:
        if lease is None:
            return Standing.NEW
        if lease.is_released:
            return Standing.LEFT
        if lease.holder is None:
            return Standing.LOST
        if silent_s >= silence_s(self._lease_s):
            return Standing.SILENT
        # A holder beats more often than twice a lease, or is refused at its start.
        if silent_s <= self._lease_s / 2 and self._has_moved(lease):
            return Standing.ALIVE
        return Standing.UNDECIDED

    def _has_moved(self, lease: Lease) -> bool:
        first = self._first.get(lease.substation)
        return first is None or lease.has_moved_since(first)
