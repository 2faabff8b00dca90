"""Who arrives when, and what they ask for (ElaadNL): pure, for every locustfile of this folder.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

from dataclasses import dataclass
from itertools import pairwise

POWER_KW = (3.7, 7.4, 11, 22)
"""What AC chargers and cars agree on: one phase of 16 or 32 A, or three of them."""
LEAST_KWH, MOST_KWH = 1.0, 60.0
"""The two ends of the energies, which the source does not tell."""


@dataclass(frozen=True)
class Profile:
    """One kind of driver."""

    name: str
    arrivals_percent: tuple[float, ...]
    """Of a weekday's arrivals, in each hour from 00."""
    energy_kwh: tuple[float, float, float, float]
    """The quantiles 25, 50, 75 and 95 % of a session's energy."""


PRIVATE = Profile(
    "private",
    (2.1, 0.5, 0.2, 0.1, 0.1, 0.1, 0.2, 0.6, 1.4, 1.1, 1.1, 1.5,
     2.2, 2.2, 2.7, 3.7, 5.7, 12.1, 17.0, 11.5, 9.1, 8.9, 9.1, 6.6),
    (8.2, 19.4, 35.8, 59.6),
)  # fmt: skip
PUBLIC = Profile(
    "public",
    (1.0, 0.5, 0.2, 0.2, 0.2, 0.2, 0.7, 3.2, 7.9, 7.7, 5.1, 4.7,
     5.3, 5.3, 5.0, 5.1, 5.7, 8.3, 10.9, 8.1, 5.1, 4.0, 3.4, 2.3),
    (4.2, 7.2, 13.8, 41.6),
)  # fmt: skip
WORKPLACE = Profile(
    "workplace",
    (0.0, 0.0, 0.0, 0.0, 0.1, 1.4, 4.3, 14.3, 26.7, 18.1, 7.7, 4.9,
     5.4, 5.3, 4.0, 3.0, 2.0, 1.0, 0.6, 0.5, 0.3, 0.1, 0.1, 0.0),
    (5.4, 8.8, 16.7, 31.9),
)  # fmt: skip


def draw_energy_kwh(profile: Profile, share: float) -> float:
    """The energy that this share (0 to 1) of sessions stays below, between the quantiles on a straight line."""
    quantiles = zip((0.0, 0.25, 0.5, 0.75, 0.95, 1.0), (LEAST_KWH, *profile.energy_kwh, MOST_KWH), strict=True)
    for (low, low_kwh), (high, high_kwh) in pairwise(quantiles):
        if share <= high:
            return low_kwh + (high_kwh - low_kwh) * (share - low) / (high - low)
    raise ValueError(f"{share} is no share")


def wish(profile: Profile, share: float, power_kw: float, longest_min: float) -> dict[str, float]:
    """The body's energy and power; no more energy than this power delivers in `longest_min` minutes."""
    energy_kwh = min(draw_energy_kwh(profile, share), power_kw * longest_min / 60)
    return {"energy_kwh": max(0.01, round(energy_kwh, 2)), "max_power_kw": power_kw}
