"""Leases without clocks: who holds a substation, and how long an observer has seen its lease stand still; pure.

Nobody's clock is compared with anybody else's. A holder counts renewals in the ledger; an observer times on its own
clock how long that count does not move, and acts only after the lease and a margin. The holder stops by itself at the
send time of its last answered renewal plus the lease. So the two can overlap only where their clocks' rates differ
by more than margin ÷ (2 × lease + margin), 9 % here.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

MARGIN_OF_LEASE = 0.2
"""The margin as a part of the lease."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A substation's lease as the ledger shows it; `renewals` only goes up, for ever."""

    substation: str
    epoch: int
    renewals: int
    holder: str | None
    """The process that holds it; None where it was lost and nobody has taken it since."""
    is_released: bool
    """The holder has left in order: nobody charges there any more."""
    heir: str | None = None
    """A process that waits to take it over."""

    @property
    def is_free(self) -> bool:
        """Whether it may be taken at once."""
        return self.holder is None or self.is_released

    def has_moved_since(self, earlier: "Lease") -> bool:
        """Whether somebody took, renewed, released or lost it; an heir's coming is no move."""
        return replace(self, heir=None) != replace(earlier, heir=None)


def silence_s(lease_s: float) -> float:
    """How long a lease must have stood still for an observer before it may act [s]."""
    return lease_s * (1 + MARGIN_OF_LEASE)


@dataclass(slots=True)
class _Sighting:
    lease: Lease
    since_s: float
    """In counted time; see `SilenceWatch`."""
    last_s: float


@dataclass(slots=True)
class SilenceWatch:
    """Times how long leases stand still on one observer's clock.

    An observer that has not looked for half a lease begins anew: it was frozen, or the ledger was away, and then
    the holders could not renew either. A ledger may also answer reads, but no writes. Therefore each time without an
    answered write counts for at most half a lease, and where it was longer than `silence_s`, the observer begins anew.
    Thus one slow write, for instance at a locked row, delays the count, but does not end it.
    """

    lease_s: float
    _sightings: dict[str, _Sighting] = field(default_factory=dict)
    _written_at_s: float = 0.0
    """When the ledger was last known to take writes."""
    _counted_s: float = 0.0
    """How much time had counted by then."""

    def observe(
        self, leases: Collection[Lease], replied_at_s: float, written_at_s: float | None = None
    ) -> dict[str, float]:
        """Note what a look showed whose reply came at `replied_at_s`; returns how long each has stood still [s].

        `written_at_s` is when the ledger last answered a write of the observer; None stands for an observer whose looks
        wait for its writes. A lease that has moved shows a write, too. Substations that are not named any more are
        forgotten.
        """
        since_s = {
            one.substation: self._sightings[one.substation].since_s
            for one in leases
            if self._stands_still(one, replied_at_s)
        }
        if written_at_s is None or len(since_s) < len(leases):
            written_at_s = replied_at_s
        written_at_s = max(written_at_s, self._written_at_s)
        without_s = written_at_s - self._written_at_s
        self._counted_s += min(without_s, self.lease_s / 2)
        self._written_at_s = written_at_s
        counted_s = self._counted_s + min(replied_at_s - self._written_at_s, self.lease_s / 2)
        if without_s > silence_s(self.lease_s):
            since_s = {}
        self._sightings = {
            one.substation: _Sighting(one, since_s.get(one.substation, counted_s), replied_at_s) for one in leases
        }
        return {substation: counted_s - one.since_s for substation, one in self._sightings.items()}

    def _stands_still(self, lease: Lease, replied_at_s: float) -> bool:
        before = self._sightings.get(lease.substation)
        return (
            before is not None
            and not lease.has_moved_since(before.lease)
            and replied_at_s - before.last_s <= self.lease_s / 2
        )


def is_lost(lease: Lease, silent_s: float, lease_s: float) -> bool:
    """Whether a substation that has been silent for `silent_s` may be given up by the sweep.

    With an heir in sight it waits as long again, once: the sessions had better go on where the vehicles stand.
    """
    if lease.holder is None:
        return False
    return silent_s >= silence_s(lease_s) * (1 if lease.heir is None else 2)
