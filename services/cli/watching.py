"""What `evenload top` makes of successive answers: rates by differences, and requests that changed state. Pure."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.cli.client import ENDED

RATE_OVER_S = 10.0
CHANGES_KEPT = 50
_COUNTED_ANEW_S = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """A request that was seen in another state than before; `seen_at_s` is when, on the monotonic clock."""

    seen_at_s: float
    request_id: str
    vehicle_id: str
    before: str | None
    status: str
    substation: str | None


@dataclass
class Watch:
    """The memory between two answers of the gateway."""

    table: Mapping[str, Any] = field(default_factory=dict)
    newest: Sequence[Mapping[str, Any]] = ()
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=CHANGES_KEPT))
    """Newest first."""
    _counts: deque[tuple[float, int, int]] = field(default_factory=deque)
    _states: dict[str, str] | None = None

    def take(self, table: Mapping[str, Any], newest: Sequence[Mapping[str, Any]], now_s: float) -> list[Change]:
        """Take in a load table and the newest requests; returns what has changed since the last time.

        `now_s` is of a clock that is never set, or the rates would stand still after a step back.
        """
        self.table, self.newest = table, newest
        self._count(now_s)
        states = {str(one.get("request_id")): str(one["status"]) for one in newest}
        before = self._states
        self._states = (before or {}) | states
        if len(self._states) > 10 * len(states) + CHANGES_KEPT:  # what left the page long ago does not come back
            self._states = states
        if before is None:
            return []
        changed = [
            Change(
                now_s,
                str(one.get("request_id")),
                str(one.get("vehicle_id")),
                before.get(str(one.get("request_id"))),
                str(one["status"]),
                one.get("substation"),
            )
            for one in newest
            if before.get(str(one.get("request_id"))) != one["status"]
        ]
        self.changes.extendleft(reversed(changed))
        return changed

    def rates(self) -> tuple[float | None, float | None]:
        """Requests accepted and ended a second, over the last seconds; None until two counts are known."""
        if len(self._counts) < 2:
            return None, None
        (first_s, accepted_before, ended_before), (last_s, accepted, ended) = self._counts[0], self._counts[-1]
        took_s = last_s - first_s
        return max(0, accepted - accepted_before) / took_s, max(0, ended - ended_before) / took_s

    def _count(self, now_s: float) -> None:
        counts, age_s = self.table.get("requests"), self.table.get("requests_age_s")
        if not isinstance(counts, dict) or not isinstance(age_s, int | float):
            return
        counted_at_s = now_s - age_s
        if self._counts and counted_at_s - self._counts[-1][0] < _COUNTED_ANEW_S:
            return  # the gateway counts every two seconds: the same answer again
        self._counts.append((counted_at_s, sum(counts.values()), sum(counts.get(one, 0) for one in ENDED)))
        while self._counts[-1][0] - self._counts[0][0] > RATE_OVER_S and len(self._counts) > 2:
            self._counts.popleft()
