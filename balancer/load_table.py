"""The live load table: the last reading of each substation plus the set of what that reading does not show.

Pure: time comes in as a parameter. What is in flight is a set of (request, attempt), not a sum: a message that is
lost, doubled or refused leaves nothing behind, because the set is replaced from the ledger as a whole
(a counter-based table drifts from 1.03 to 1.12 highest ÷ mean utilisation with 1 % of messages lost).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from balancer.readings import Reading
from services.ledger.records import Known, Unseen

Key = tuple[str, int]
"""A request at an attempt."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a substation's load is by now, as far as anyone can know; power in W, age in s."""

    substation: str
    zone: str | None
    demand_w: float
    limit_w: float
    floor_w: float
    """Least power of a session: more sessions than the limit has floors cannot run."""
    taken: int
    """Vehicles at a connector, in a bay or on their way."""
    connectors: int
    bays: int
    scraped_w: float
    in_flight: int
    age_s: float
    fresh: bool
    operative: bool
    has_lease: bool
    """Without one nobody charges there, whatever was read last."""

    @property
    def usable(self) -> int:
        """Connectors for which the limit has a floor's power."""
        return min(self.connectors, math.floor(self.limit_w / max(1.0, self.floor_w)))

    @property
    def has_free_connector(self) -> bool:
        """Whether one more vehicle could charge at once."""
        return self.taken < self.usable

    @property
    def sessions(self) -> int:
        """Vehicles at a connector: a substation fills its connectors before its bays."""
        return min(self.taken, self.usable)

    @property
    def bays_taken(self) -> int:
        """Vehicles for whom no connector is free."""
        return self.taken - self.sessions

    @property
    def utilisation(self) -> float:
        """Demand ÷ limit; above 1 where more is asked for than may be given."""
        return self.demand_w / self.limit_w if self.limit_w > 0 else float("inf")


@dataclass(slots=True)
class _Reservation:
    unseen: Unseen
    made_at: int
    committed: bool = False


@dataclass(slots=True)
class _Line:
    reading: Reading
    zone: str | None
    has_lease: bool
    entries: dict[Key, Unseen] = field(default_factory=dict)
    power_w: float = 0.0
    count: int = 0

    def add(self, entry: Unseen, times: int = 1) -> None:
        self.power_w += times * entry.sign * entry.power_w
        self.count += times * entry.sign


class LoadTable:
    """One line per substation; only `refresh` replaces lines, only reservations change them in between."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._own: dict[Key, _Reservation] = {}
        self._version = 0

    @property
    def version(self) -> int:
        """Goes up with every reservation; tells which of them a later ledger read cannot have missed."""
        return self._version

    def known(self, readings: Mapping[str, Reading]) -> list[Known]:
        """What to ask the ledger about: the newest reading of each substation, of the table or of `readings`."""
        newest = self._newest(readings)
        return [Known(one.substation, one.epoch, one.claims_total, one.ends_total) for one in newest.values()]

    def refresh(
        self,
        readings: Mapping[str, Reading],
        zones: Mapping[str, str | None],
        unseen: Iterable[Unseen],
        since: int,
        *,
        without_lease: Collection[str] = (),
    ) -> None:
        """Replace the whole table by newer readings and the ledger's answer to `known(readings)`.

        `since` is the `version` before the ledger was asked: own reservations that were not committed by then, or
        made later, are kept, because the answer may lack them. Substations absent from `zones` are dropped.
        """
        newest = self._newest(readings)
        self._lines = {
            substation: _Line(reading, zones[substation], substation not in without_lease)
            for substation, reading in newest.items()
            if substation in zones
        }
        self._own = {key: own for key, own in self._own.items() if not own.committed or own.made_at > since}
        for entry in unseen:
            self._enter(entry)
        for own in self._own.values():
            self._enter(own.unseen)

    def reserve(self, request_id: str, attempt: int, substation: str, power_w: int) -> None:
        """Count a decision at once, before it is written, or concurrent decisions herd."""
        self._version += 1
        entry = Unseen(request_id, attempt, substation, power_w, 1)
        self._own[request_id, attempt] = _Reservation(entry, self._version)
        self._enter(entry)

    def is_reserved(self, request_id: str, attempt: int) -> bool:
        """Whether this process has already decided on that request at that attempt."""
        return (request_id, attempt) in self._own

    def commit(self, request_id: str, attempt: int) -> None:
        """The reservation is written: a ledger read that begins from now on shows it."""
        own = self._own.get((request_id, attempt))
        if own is not None:
            self._version += 1
            own.made_at = self._version
            own.committed = True

    def release(self, request_id: str, attempt: int) -> None:
        """Take a reservation back that was not written, or given back."""
        own = self._own.pop((request_id, attempt), None)
        if own is None:
            return
        line = self._lines.get(own.unseen.substation)
        entry = line.entries.get((request_id, attempt)) if line is not None else None
        # The ledger may have told in the meantime that somebody else's assignment of it has ended: that stays.
        if line is not None and entry is not None and entry.sign > 0:
            del line.entries[request_id, attempt]
            line.add(entry, -1)

    def estimates(self, now_s: float, stale_after_s: float) -> list[Estimate]:
        """Every line's estimate: reading + in flight."""
        return [self.estimate(substation, now_s, stale_after_s) for substation in self._lines]

    def estimate(self, substation: str, now_s: float, stale_after_s: float) -> Estimate:
        """One line's estimate; raises `KeyError` for a substation that is not in the table."""
        line = self._lines[substation]
        reading = line.reading
        age_s = max(0.0, now_s - reading.taken_at_s)
        return Estimate(
            substation=substation,
            zone=line.zone,
            demand_w=max(0.0, reading.demand_w + line.power_w),
            limit_w=reading.limit_w,
            floor_w=reading.floor_w,
            taken=max(0, reading.sessions + line.count),
            connectors=reading.connectors,
            bays=reading.bays,
            scraped_w=reading.power_w,
            in_flight=line.count,
            age_s=age_s,
            fresh=age_s <= stale_after_s,
            operative=reading.operative,
            has_lease=line.has_lease,
        )

    def _newest(self, readings: Mapping[str, Reading]) -> dict[str, Reading]:
        newest = {substation: line.reading for substation, line in self._lines.items()}
        for substation, reading in readings.items():
            if reading.is_newer_than(newest.get(substation)):
                newest[substation] = reading
        return newest

    def _enter(self, entry: Unseen) -> None:
        line = self._lines.get(entry.substation)
        key = (entry.request_id, entry.attempt)
        if line is not None and key not in line.entries:
            line.entries[key] = entry
            line.add(entry)
