"""How long those who wait will wait: a projection from how sessions went lately, pure.

Each connector frees when its session has what it is still owed, at the pace of recent sessions; whoever is next in line
takes the first connector that frees, for as long as its own energy takes (list scheduling).
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from services.ledger.records import Outlook, PastSession, Queued

ENDS_NEEDED = 5
"""With fewer recent ends nothing is known, and nothing is told."""


def pace(recent: Sequence[PastSession]) -> float | None:
    """Energy got for each watt wished for and wall second [J/(W·s)]; None while unknown.

    It contains the simulation's speed, and what sharing and taper left of the sessions' wishes.
    """
    wished = sum(one.power_max_w * one.took_ms / 1000 for one in recent)
    delivered_j = sum(one.delivered_j for one in recent)
    if len(recent) < ENDS_NEEDED or wished <= 0 or delivered_j <= 0:
        return None
    return delivered_j / wished


def expected_waits(outlook: Outlook) -> Mapping[str, float]:
    """Wall seconds until each waiting request charges, by id; without those of whom nothing is known."""
    rate = pace(outlook.recent_ends)
    if rate is None:
        return {}
    frees_at_s: dict[str, list[float]] = {}
    """For each substation a heap: when each of its connectors is free, in seconds from now."""
    by_zone: dict[str | None, list[str]] = defaultdict(list)
    busy: dict[str | None, list[float]] = defaultdict(list)
    for one in outlook.charging:
        busy[one.substation].append(_lasts_s(one, rate, 0))
    for place in outlook.places:
        theirs = busy[place.substation]
        frees_at_s[place.substation] = theirs + [0.0] * (place.connectors - len(theirs))
        heapq.heapify(frees_at_s[place.substation])
        by_zone[place.zone].append(place.substation)
        if place.zone is not None:
            by_zone[None].append(place.substation)
    for one in outlook.in_bays:
        _take(one, [one.substation] if one.substation in frees_at_s else [], frees_at_s, rate)
    waits = {one.request_id: _take(one, by_zone.get(one.zone, []), frees_at_s, rate) for one in outlook.waiting}
    return {request_id: wait_s for request_id, wait_s in waits.items() if math.isfinite(wait_s)}


def _take(one: Queued, eligible: Sequence[str | None], frees_at_s: dict[str, list[float]], rate: float) -> float:
    """Give the first connector that frees to `one`; returns when, infinity where none ever does."""
    heaps = [frees_at_s[name] for name in eligible if name is not None and frees_at_s[name]]
    if not heaps:
        return math.inf
    first = min(heaps, key=lambda heap: heap[0])
    begins_s = first[0]
    if begins_s * 1000 <= one.wait_left_ms:  # else it gives up before, and takes nobody's place
        heapq.heapreplace(first, begins_s + _lasts_s(one, rate, begins_s))
    return begins_s


def _lasts_s(one: Queued, rate: float, after_s: float) -> float:
    leaves_in_s = math.inf if one.departs_in_ms is None else one.departs_in_ms / 1000 - after_s
    return max(0.0, min(leaves_in_s, max(0, one.owed_j) / (rate * one.power_max_w)))
