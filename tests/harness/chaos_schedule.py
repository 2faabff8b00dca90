"""Which faults are done to a run, when, and to whom: pure, and the same for the same seed.

Faults come in phases. A phase of one fault shows how long recovery takes. In the others two or three faults overlap.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from harness.chaos_kinds import SPECS, Kind, Part

from services.broker import topology

BROKER = "rabbitmq"
HOSTED = {"substations-1": "north,east", "substations-2": "south,west"}
SERVICES = ("gateway-1", "gateway-2", "balancer-1", "balancer-2", *HOSTED)
SINGLE_SHARE = 0.5
"""Of the phases."""
AT_ONCE_MAX = 3
SETTLES_S = 8.0
"""So long after a phase the next may begin, if the stack has recovered."""
LATE_S = 4.0
"""So much later than planned each phase may end, on a busy machine; the load lasts as much longer."""

QUEUES = {one: topology.substation_queue(one) for hosted in HOSTED.values() for one in hosted.split(",")}
BINDINGS = {
    f"{topology.REQUESTS}>{topology.INTAKE}": "",
    f"{topology.DEAD}>{topology.GRAVEYARD}": "",
    **{f"{topology.ASSIGNMENTS}>{queue}": one for one, queue in QUEUES.items()},
}
"""Source and destination of each binding, and its routing key."""
TARGETS: Mapping[Kind, Sequence[str]] = {
    Kind.TWIN: tuple(HOSTED),
    Kind.EXCHANGE: tuple(topology.EXCHANGES),
    Kind.QUEUE: (topology.INTAKE, topology.GRAVEYARD, *QUEUES.values()),
    Kind.BINDING: tuple(BINDINGS),
    Kind.RIGHTS: ("gateway", "balancer", "substation"),
    Kind.LEDGER_MOVED: ("ledger", "ledger with its log"),
}
"""What else than the part itself, or one service, is broken."""
KILL_AT_ONCE = frozenset({Kind.KILL_SEVERAL, Kind.KILL_ALL})
TOGETHER = (("gateway-1", "gateway-2"), ("balancer-1", "balancer-2"), tuple(HOSTED))
"""Whoever is killed with all of its kind."""


@dataclass(frozen=True)
class Fault:
    """One fault; `at_s` since its phase began."""

    at_s: float
    kind: Kind
    targets: tuple[str, ...]
    for_s: float = 0.0

    @property
    def part(self) -> Part:
        return SPECS[self.kind].part

    def __str__(self) -> str:
        lasts = f" for {self.for_s:.1f} s" if self.for_s else ""
        return f"{self.kind} {', '.join(self.targets)}{lasts}"


@dataclass(frozen=True)
class Phase:
    """Faults that overlap; `at_s` since the load began."""

    at_s: float
    faults: tuple[Fault, ...]

    @property
    def lasts_s(self) -> float:
        return max(one.at_s + one.for_s for one in self.faults)

    @property
    def is_single(self) -> bool:
        return len(self.faults) == 1

    @property
    def ends_broker(self) -> bool:
        """Whether the broker is killed or told to end, by a fault of its own or together with services."""
        return any(
            SPECS[one.kind].ends_broker or (one.part is Part.SERVICE and BROKER in one.targets) for one in self.faults
        )

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {' + '.join(map(str, self.faults))}"


def schedule(
    seed: int, faults: int, kinds: Sequence[Kind], *, longest_s: float = 40.0, over_s: float = 0.0
) -> list[Phase]:
    """`faults` of them in phases, spread over `over_s` where that is longer than they need.

    Each of the `kinds` comes up as often as its weight says before any comes up again.
    """
    dice = random.Random(seed)
    drawn = _Drawn(dice, kinds)
    phases: list[tuple[Fault, ...]] = []
    left = faults
    while left > 0:
        wanted = 1 if dice.random() < SINGLE_SHARE else min(left, dice.randint(2, AT_ONCE_MAX))
        phases.append(_phase(dice, drawn, wanted, longest_s))
        left -= len(phases[-1])
    needs_s = [Phase(0.0, one).lasts_s + SETTLES_S for one in phases]
    stretched = max(1.0, over_s / max(1.0, sum(needs_s)))
    starts_s = accumulate(needs_s, initial=SETTLES_S / 2)
    return [Phase(round(at_s * stretched, 1), one) for at_s, one in zip(starts_s, phases, strict=False)]


def length_s(phases: Sequence[Phase]) -> float:
    """How long all of it takes, as planned."""
    return phases[-1].at_s + phases[-1].lasts_s + SETTLES_S if phases else 0.0


def load_s(phases: Sequence[Phase]) -> float:
    """How long a load must last so that the last faults are done under it, too."""
    return length_s(phases) + LATE_S * len(phases)


def coming_and_going(target: str, times: int, every_s: float) -> list[Phase]:
    """A service that leaves in order and comes back, again and again."""
    return [Phase(every_s * (0.5 + n), (Fault(0.0, Kind.LEAVE, (target,), every_s / 2),)) for n in range(times)]


class _Drawn:
    """Kinds in a random order, round by round, and the targets of each kind likewise."""

    def __init__(self, dice: random.Random, kinds: Sequence[Kind]) -> None:
        self._dice = dice
        self._round = [kind for kind in kinds for _ in range(SPECS[kind].weight)]
        self._left: list[Kind] = []
        self._targets: dict[Kind, list[str]] = {}

    def take(self, busy: Sequence[Fault]) -> Kind | None:
        """The next kind that may overlap with these faults; what may not comes up later."""
        if not self._left:
            self._left = self._dice.sample(self._round, len(self._round))
        for kind in self._left:
            if not busy or _may_overlap(kind, busy):
                self._left.remove(kind)
                return kind
        return None

    def targets(self, kind: Kind, broken: set[str]) -> tuple[str, ...]:
        """Whom to break, none of whom is broken yet."""
        if kind in KILL_AT_ONCE:
            return self._killed_at_once(kind)
        if kind in TARGETS:
            if not self._targets.get(kind):
                self._targets[kind] = self._dice.sample(TARGETS[kind], len(TARGETS[kind]))
            return (self._targets[kind].pop(),)
        match SPECS[kind].part:
            case Part.SERVICE:
                return (self._dice.choice([one for one in SERVICES if one not in broken]),)
            case Part.BROKER:
                return (BROKER,)
            case Part.LEDGER:
                return ("ledger",)

    def _killed_at_once(self, kind: Kind) -> tuple[str, ...]:
        if kind is Kind.KILL_ALL:
            return (BROKER, *SERVICES)
        if self._dice.random() < 0.5:
            return self._dice.choice(TOGETHER)
        return tuple(self._dice.sample([BROKER, *SERVICES], self._dice.randint(2, 4)))


def _may_overlap(kind: Kind, busy: Sequence[Fault]) -> bool:
    """Faults of services may overlap on different ones; several killed at once may be any service, and the broker.

    So those overlap with faults of the ledger only.
    """
    kinds = {one.kind for one in busy}
    if any(SPECS[one].is_always_alone for one in (kind, *kinds)):
        return False
    parts = {one.part for one in busy} | ({Part.BROKER} if kinds & KILL_AT_ONCE else set())
    if kind in KILL_AT_ONCE:
        return parts == {Part.LEDGER}
    if SPECS[kind].part is Part.SERVICE:
        return not kinds & KILL_AT_ONCE
    return SPECS[kind].part not in parts


def _phase(dice: random.Random, drawn: _Drawn, wanted: int, longest_s: float) -> tuple[Fault, ...]:
    found: list[Fault] = []
    while len(found) < wanted and (kind := drawn.take(found)) is not None:
        broken = {target for one in found for target in one.targets}
        at_s = round(dice.uniform(0, max(2.0, found[0].for_s)), 1) if found else 0.0
        found.append(Fault(at_s, kind, drawn.targets(kind, broken), _lasts_s(dice, kind, longest_s)))
    return tuple(found)


def _lasts_s(dice: random.Random, kind: Kind, longest_s: float) -> float:
    """Short ones are drawn more often: each tenfold is as likely as another."""
    most_s = min(SPECS[kind].longest_s, longest_s)
    return round(math.exp(dice.uniform(0.0, math.log(max(1.0, most_s)))), 1) if most_s else 0.0
