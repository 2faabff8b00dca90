"""How a substation is chosen: named policies over the same estimates, pure; ties are drawn by a seeded generator.

Each decision tells why: the candidates with their scores, and what kept the others out.
"""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from balancer.load_table import Estimate

PolicyName = Literal["least-utilisation", "least-load-scraped"]
Score = Callable[[Estimate, int], float]

FIRST_OF_TIED: frozenset[PolicyName] = frozenset({"least-load-scraped"})
"""Policies that take the first of equal candidates, as the original does; the others draw."""

EXPLAINED_CANDIDATES = 5
SAME_SCORE = 1e-9


@dataclass(frozen=True, slots=True)
class Choice:
    """A substation, and the decision's explanation."""

    substation: str
    explanation: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """Nobody can take the request now; how many are kept out by what."""

    excluded: Mapping[str, int]


def least_utilisation(estimate: Estimate, power_w: int) -> float:
    """Utilisation of power after the request [ratio]; among bays, of power or of connectors, whichever is scarcer.

    While a connector is free, how many are taken does not matter: it would pull the utilisations of vehicles of unlike
    power apart wherever connectors are scarcer than power. `choose` never weighs a bay against a free connector.
    """
    power_share = _power_share(estimate, power_w)
    return power_share if estimate.has_free_connector else max(power_share, _connector_share(estimate))


def least_load_scraped(estimate: Estimate, _power_w: int) -> float:
    """The original's: power at the last scrape [W], as if nothing had been sent since. It herds; for comparison."""
    return estimate.scraped_w


POLICIES: Mapping[str, Score] = {
    "least-utilisation": least_utilisation,
    "least-load-scraped": least_load_scraped,
}


def why_not(estimate: Estimate, zone: str | None) -> str | None:
    """What keeps a substation out, or None where it has room."""
    if zone is not None and estimate.zone != zone:
        return "other_zone"
    if not estimate.has_lease:
        return "no_lease"
    if not estimate.operative:
        return "inoperative"
    if estimate.limit_w < max(
        1.0, estimate.floor_w
    ):  # a hostile reading may show less than any meter, and the scores would overflow
        return "no_power"
    if estimate.taken >= estimate.usable + estimate.bays:
        return "no_place"
    return None


def choose(
    name: PolicyName,
    estimates: Sequence[Estimate],
    power_w: int,
    zone: str | None,
    rng: random.Random,
    avoided: Collection[str] = (),
) -> Choice | NoRoom:
    """The substation with the lowest score among those with room.

    `power_w` is the most the vehicle can take. A stale reading counts as full while anybody's is fresh; where none is,
    the last readings decide. Nobody is sent into a bay while a connector is free elsewhere. Substations that are
    `avoided`, because messages do not reach them, take only what nobody else could take as well: their heartbeat brings
    it within seconds, a bay waits for minutes.
    """
    excluded: dict[str, int] = {}
    with_room: list[Estimate] = []
    for estimate in estimates:
        cause = why_not(estimate, zone)
        if cause is None:
            with_room.append(estimate)
        else:
            excluded[cause] = excluded.get(cause, 0) + 1
    candidates = with_room
    if any(estimate.fresh and why_not(estimate, zone) in (None, "no_place") for estimate in estimates):
        candidates = _only(lambda one: one.fresh, candidates, excluded, "stale")
    if any(estimate.has_free_connector for estimate in candidates):
        candidates = _only(lambda one: one.has_free_connector, candidates, excluded, "bay_only")
    if any(estimate.substation not in avoided for estimate in candidates):
        candidates = _only(lambda one: one.substation not in avoided, candidates, excluded, "unreached")
    if not candidates:
        return NoRoom(excluded)
    score = POLICIES[name]
    scored = sorted(((score(one, power_w), one) for one in candidates), key=lambda pair: pair[0])
    best = scored[0][0]
    ties = [one for value, one in scored if value - best <= SAME_SCORE]
    chosen = ties[0] if len(ties) == 1 or name in FIRST_OF_TIED else rng.choice(ties)
    return Choice(chosen.substation, _explain(name, chosen, scored, excluded, len(ties)))


def _only(
    is_kept: Callable[[Estimate], bool], estimates: Sequence[Estimate], excluded: dict[str, int], cause: str
) -> list[Estimate]:
    kept = [estimate for estimate in estimates if is_kept(estimate)]
    if len(kept) < len(estimates):
        excluded[cause] = len(estimates) - len(kept)
    return kept


def _explain(
    name: str,
    chosen: Estimate,
    scored: Sequence[tuple[float, Estimate]],
    excluded: Mapping[str, int],
    ties: int,
) -> dict[str, Any]:
    shown = [chosen, *(one for _, one in scored if one is not chosen)][:EXPLAINED_CANDIDATES]
    scores = {one.substation: value for value, one in scored}
    limited_by = "power" if chosen.has_free_connector else "connectors"
    return {
        "policy": name,
        "substation": chosen.substation,
        "limited_by": limited_by,
        "tied": ties,
        "candidates": [
            {
                "substation": one.substation,
                "score": round(scores[one.substation], 4),
                "demand_kw": round(one.demand_w / 1000, 3),
                "limit_kw": round(one.limit_w / 1000, 3),
                "sessions": one.sessions,
                "connectors": one.connectors,
                "bays_taken": one.bays_taken,
                "bays": one.bays,
                "in_flight": one.in_flight,
                "reading_age_s": round(one.age_s, 2),
            }
            for one in shown
        ],
        "candidates_total": len(scored),
        "excluded": dict(excluded),
    }


def _power_share(estimate: Estimate, power_w: int) -> float:
    return (estimate.demand_w + power_w) / estimate.limit_w


def _connector_share(estimate: Estimate) -> float:
    return (estimate.taken + 1) / max(1, estimate.usable)
