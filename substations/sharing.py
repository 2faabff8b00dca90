"""How sessions share a substation's limit: who runs, who is paused, and how much each gets; pure.

A running session gets at least the floor, or its wish where that is less. Where the limit does not reach for all the
floors, some sessions are paused, because a vehicle below its floor charges badly or not at all. No power is left idle
that anybody could take.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SharingName = Literal["max-min", "least-laxity", "first-come"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What one session would take, and what decides its turn."""

    request_id: str
    arrival: int
    """Its place in the order of claims."""
    wanted_w: int
    """Most power that the vehicle takes now [W]."""
    laxity_s: float
    """Session seconds that it can still wait and be full at its departure; infinite without one."""
    is_running: bool
    since_s: float
    """Since when it runs, or is paused; the earlier, the smaller."""
    ran_s: float = 0.0
    """How long it has run so far, in the same seconds."""
    is_held: bool = False
    """It was started or paused a short while ago, and stays so as long as the limit allows."""

    def floor_w(self, floor_w: int) -> int:
        """The least that it may run with under a general floor [W]."""
        return min(floor_w, self.wanted_w)


@dataclass(frozen=True, slots=True)
class Policy:
    """`precedence` orders sessions, first come those that run; `divide` shares a limit among those (W, by id)."""

    precedence: Callable[[Wish], tuple[float, ...]]
    divide: Callable[[int, int, Sequence[Wish]], dict[str, int]]


def share(limit_w: int, floor_w: int, wishes: Sequence[Wish], policy: Policy) -> dict[str, int]:
    """Power for each running session [W, whole], by request id; who is absent is paused.

    The sum is the limit, or all that the running ones want where that is less: then no paused one's floor fits into
    the rest. The order of `wishes` does not matter.
    """
    ordered = sorted(wishes, key=lambda one: (*policy.precedence(one), one.arrival, one.request_id))
    running = _running(limit_w, floor_w, ordered)
    return policy.divide(limit_w, floor_w, [one for one in ordered if one.request_id in running])


def _running(limit_w: int, floor_w: int, ordered: Sequence[Wish]) -> set[str]:
    """Who runs: first those held running, then the others in their order, as far as the floors fit."""
    running: dict[str, int] = {}
    left_w = limit_w
    somebody_waits = False
    held = [one for one in ordered if one.is_held and one.is_running]
    for one in [*held, *(one for one in ordered if not one.is_held)]:
        least_w = one.floor_w(floor_w)
        # Nobody overtakes the first that waits for room: small floors could otherwise keep a large one out for ever.
        if least_w <= left_w and (one.is_running or not somebody_waits):
            running[one.request_id] = one.wanted_w
            left_w -= least_w
        elif not one.is_running and least_w <= limit_w:
            somebody_waits = True
    idle_w = limit_w - sum(running.values())
    for one in ordered:
        if one.request_id not in running and one.floor_w(floor_w) <= idle_w:
            running[one.request_id] = one.wanted_w
            idle_w -= one.wanted_w
    return set(running)


def fill_evenly(limit_w: int, _floor_w: int, running: Sequence[Wish]) -> dict[str, int]:
    """Max-min fair by water-filling: who wants less than an equal share gets it all, the others share what that leaves.

    (Bertsekas and Gallager, Data Networks, 6.5.) Odd watts go to the smallest wishes, then by arrival. Where the floors
    fit into the limit, nobody gets less than its floor: the level of the water is above it.
    """
    powers_w: dict[str, int] = {}
    left_w = limit_w
    by_wish = sorted(running, key=lambda one: (one.wanted_w, one.arrival, one.request_id))
    for place, one in enumerate(by_wish):
        level_w, odd_w = divmod(left_w, len(by_wish) - place)
        if one.wanted_w > level_w:
            rest = enumerate(by_wish[place:])
            return powers_w | {other.request_id: level_w + (number < odd_w) for number, other in rest}
        powers_w[one.request_id] = one.wanted_w
        left_w -= one.wanted_w
    return powers_w


def fill_in_order(limit_w: int, floor_w: int, running: Sequence[Wish]) -> dict[str, int]:
    """Everybody gets the floor; what that leaves fills the wishes one after the other, in the order given."""
    powers_w = {one.request_id: one.floor_w(floor_w) for one in running}
    left_w = limit_w - sum(powers_w.values())
    for one in running:
        more_w = min(left_w, one.wanted_w - powers_w[one.request_id])
        powers_w[one.request_id] += more_w
        left_w -= more_w
    return powers_w


def longest_paused(wish: Wish) -> tuple[float, ...]:
    """Sessions take turns: who is paused longest starts, who runs longest makes room.

    Many are paused at one tick. Were arrival alone to order these, the same ones would come first every time, and get
    half as much again as the others; so it is who ran least so far.
    """
    return (1, -wish.since_s, wish.ran_s) if wish.is_running else (0, wish.since_s, wish.ran_s)


def least_laxity(wish: Wish) -> tuple[float, ...]:
    """The most urgent first; without a departure last."""
    return (wish.laxity_s,)


def first_come(_wish: Wish) -> tuple[float, ...]:
    """By arrival, which breaks every tie."""
    return ()


POLICIES: Mapping[SharingName, Policy] = {
    "max-min": Policy(longest_paused, fill_evenly),
    "least-laxity": Policy(least_laxity, fill_in_order),
    "first-come": Policy(first_come, fill_in_order),
}
