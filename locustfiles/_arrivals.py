"""When vehicles arrive, as rates that change from stage to stage: pure, for every locustfile of this folder.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

VEHICLES_PER_USER_S = 1.0
"""What one of locust's users brings at most, so that a slow answer holds up few others."""
VEHICLES_PER_S_MAX = 1000.0
"""More than one process of locust can send."""


@dataclass(frozen=True)
class Stage:
    """Some seconds in which the rates stay as they are."""

    lasts_s: float
    per_s: Mapping[str, float]
    """Vehicles per second, by kind of driver."""


class Arrivals:
    """A Poisson process for each kind of driver, shared out evenly among that kind's users.

    Such a process forgets: a user that comes or goes in the middle changes nothing for the others.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Raise `ValueError` where that is more than locust can send."""
        self.stages = tuple(stages)
        self._ends = list(accumulate(stage.lasts_s for stage in self.stages))
        busiest = max(sum(stage.per_s.values()) for stage in self.stages)
        if busiest > VEHICLES_PER_S_MAX:
            raise ValueError(
                f"this makes {busiest:,.0f} vehicles per second where it is busiest, more than "
                f"{VEHICLES_PER_S_MAX:,.0f}: take fewer vehicles, or more time"
            )

    @property
    def lasts_s(self) -> float:
        return self._ends[-1]

    def users_of_each_kind(self, at_s: float) -> int:
        """How many users every kind of driver has at a time; 0 when all is over."""
        for stage, end in zip(self.stages, self._ends, strict=True):
            if at_s < end:
                return _users(stage)
        return 0

    def next_of_one_user(self, kind: str, after_s: float, amount: float) -> float:
        """When a user's next vehicle arrives, in seconds from the start; infinity where none does any more.

        `amount` is drawn from the exponential distribution of mean 1: so many vehicles are expected until then.
        """
        at_s = after_s
        for stage, end in zip(self.stages, self._ends, strict=True):
            if at_s >= end:
                continue
            rate = stage.per_s[kind] / _users(stage)
            if amount < rate * (end - at_s):
                return at_s + amount / rate
            amount -= rate * (end - at_s)
            at_s = end
        return math.inf


def _users(stage: Stage) -> int:
    return max(1, math.ceil(max(stage.per_s.values()) / VEHICLES_PER_USER_S))


def played_hours(
    arrivals_percent: Mapping[str, Sequence[float]], vehicles: int, from_hour: int, to_hour: int, speed: float
) -> Arrivals:
    """The hours of a day as stages, an hour in `3600 / speed` seconds, with so many vehicles in all.

    `arrivals_percent` holds a day's 24 shares for each kind of driver; all kinds are equally frequent over the day.
    Raises `ValueError` for hours in which nobody arrives.
    """
    if from_hour >= to_hour:
        raise ValueError(f"the hours end ({to_hour}) before they begin ({from_hour})")
    hours = range(from_hour, to_hour)
    whole = sum(percent[hour] for percent in arrivals_percent.values() for hour in hours)
    if whole == 0:
        raise ValueError(f"nobody arrives between {from_hour} and {to_hour} o’clock: take other hours or other drivers")
    lasts_s = 3600 / speed
    return Arrivals(
        [
            Stage(lasts_s, {kind: vehicles * of[hour] / whole / lasts_s for kind, of in arrivals_percent.items()})
            for hour in hours
        ]
    )


def shared_stage(kinds: Sequence[str], vehicles: float, lasts_s: float) -> Stage:
    """So many vehicles in so many seconds, equally many of each kind."""
    return Stage(lasts_s, dict.fromkeys(kinds, vehicles / lasts_s / len(kinds)))
