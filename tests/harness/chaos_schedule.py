"""Which faults are done to a run, when, and to whom: pure, and the same for the same seed."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

BROKER = "rabbitmq"
BROKER_KILLS_SHARE = 0.1
"""At least so many of all faults are a kill -9 of the broker."""


class Kind(StrEnum):
    """What is done; all but `kill` and `cut` last for a time."""

    KILL = "kill"
    """SIGKILL; its supervisor starts it again."""
    FREEZE = "freeze"
    """SIGSTOP, then SIGCONT."""
    LEAVE = "leave"
    """SIGTERM; started again after a time."""
    CUT = "cut"
    """Every connection to the broker is reset."""
    STALL = "stall"
    """Connections to the broker stay open and carry nothing."""
    ALARM = "alarm"
    """The broker's memory alarm."""


SERVICE_KINDS = {Kind.KILL: 4, Kind.FREEZE: 4, Kind.LEAVE: 2, Kind.CUT: 2, Kind.STALL: 2}
BROKER_KINDS = {Kind.ALARM: 2, Kind.LEAVE: 1, Kind.FREEZE: 1}
BROKER_SHARE = 0.2
"""Of the faults beyond the kills of the broker, those that are the broker's."""
SETTLES_S = {True: 12.0, False: 2.0}
"""So long the broker, or a service, is left alone after a fault: what is down cannot be broken."""


@dataclass(frozen=True)
class Fault:
    """One fault; `at_s` since the load began."""

    at_s: float
    kind: Kind
    target: str
    for_s: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.at_s:7.1f} s  {self.kind} {self.target}{lasts}"


def schedule(seed: int, faults: int, over_s: float, services: Sequence[str], longest_s: float = 40.0) -> list[Fault]:
    """`faults` of them, spread over `over_s`, each lasting up to `longest_s`; one at a time for each target."""
    dice = random.Random(seed)
    broker_kills = math.ceil(faults * BROKER_KILLS_SHARE)
    kinds = [(Kind.KILL, True)] * broker_kills
    for _ in range(faults - broker_kills):
        is_brokers = dice.random() < BROKER_SHARE
        kinds.append((_drawn(dice, BROKER_KINDS if is_brokers else SERVICE_KINDS), is_brokers))
    dice.shuffle(kinds)
    free_at_s = dict.fromkeys([BROKER, *services], 0.0)
    found = []
    for number, (kind, is_brokers) in enumerate(kinds):
        at_s = (number + dice.random()) * over_s / max(1, faults)
        # Of the services those that are whole by then; where none is, whoever is so first.
        whole = [one for one in services if free_at_s[one] <= at_s] or [min(services, key=free_at_s.__getitem__)]
        target = BROKER if is_brokers else dice.choice(whole)
        at_s = max(at_s, free_at_s[target])
        for_s = 0.0 if kind in (Kind.KILL, Kind.CUT) else round(min(longest_s, dice.uniform(1, longest_s)), 1)
        if kind is Kind.LEAVE:
            for_s = min(for_s, 5.0)
        found.append(Fault(round(at_s, 1), kind, target, for_s))
        free_at_s[target] = at_s + for_s + SETTLES_S[is_brokers]
    return sorted(found, key=lambda fault: fault.at_s)


def coming_and_going(target: str, times: int, every_s: float) -> list[Fault]:
    """A service that leaves in order and comes back, again and again."""
    return [Fault(every_s * (0.5 + number), Kind.LEAVE, target, every_s / 2) for number in range(times)]


def _drawn(dice: random.Random, weights: dict[Kind, int]) -> Kind:
    return dice.choices(list(weights), list(weights.values()))[0]
