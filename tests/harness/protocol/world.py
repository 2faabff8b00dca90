"""One seeded run of the protocol's model: balancers, substations and clients, and everything that befalls them."""

import asyncio
import contextlib
import itertools
import random
from dataclasses import dataclass, field

import pytest
from harness.ledger import new_request
from harness.protocol.clockwork import Clock, Timeline
from harness.protocol.faults import Faults, Weather
from harness.protocol.judge import Judge, Violation
from harness.protocol.ledger import ModelLedger, Network
from harness.protocol.neighbours import Balancer, Broker, Gateway
from harness.protocol.processes import SubstationProcess, registration

FAULTS_UNTIL_S = 40.0
AT_REST_BY_S = 200.0
AUDIT_EVERY_S = 1.0
SECOND_J = 11_000 * 60
"""What a session gets in a second of wall time."""


@dataclass(frozen=True, eq=False)
class Variant:
    """A protocol that is broken in one place; the sound one changes nothing."""

    name: str = "sound"
    rewritten: dict = field(default_factory=dict)
    """Statements, and what is run in their place."""
    patches: tuple = ()
    """(object, attribute, replacement)."""
    releases_first: bool = False


SOUND = Variant()
ANY_WEATHER = Weather()


class World:
    """What there is in one run; all chance comes from the seed."""

    def __init__(self, seed, variant, weather):
        self.variant = variant
        self.weather = weather
        self.rng = random.Random(seed)
        self.timeline = Timeline()
        self.trace = []
        self.ledger = ModelLedger(self.timeline, variant.rewritten)
        self.network = Network(self.rng, weather.slow)
        self.broker = Broker(self.timeline, self.rng)
        self.faults = Faults(self, self.rng, weather)
        self.judge = Judge(self)
        self.kinds = {
            one: (self.rng.randint(1, 3), self.rng.choice(weather.reaches))
            for one in ("north", "south", "west")[: self.rng.randint(2, 3)]
        }
        """The most connectors of each substation, and for which part of them its limit reaches."""
        self.is_over = False
        self.requests = []
        self.substations = []
        self.balancers = []
        self._numbers = itertools.count(1)
        self.gateway = Gateway(self, self.clock())

    def note(self, *what):
        self.trace.append((self.timeline.now_s, *what))

    # --- who there is ---------------------------------------------------------------------------------------------

    def clock(self):
        rate = self.rng.choice((0.96, 1.0, 1.04, self.rng.uniform(0.96, 1.04)))
        return Clock(self.timeline, rate, self.rng.uniform(0, 100_000))

    def balance(self):
        one = Balancer(self, f"balancer-{next(self._numbers)}", self.clock())
        self.balancers.append(one)
        self.note(one.name, "begins")

    def host(self, substations):
        """Start a process for these; a connector may be out of order since last time."""
        kinds = [registration(one, self.rng.randint(1, self.kinds[one][0]), self.kinds[one][1]) for one in substations]
        one = SubstationProcess(self, f"host-{next(self._numbers)}", self.clock(), kinds)
        self.substations.append(one)
        self.note(one.name, "begins", *(f"{kind.substation}:{kind.connectors}" for kind in kinds))

    def living(self, processes):
        return [one for one in processes if one.is_alive]

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self):
        """Raises `Violation` where a promise is broken."""
        rng, timeline = self.rng, self.timeline
        for _ in range(rng.randint(1, 3)):
            self.balance()
        substations = list(self.kinds)
        if rng.random() < 0.3:
            self.host([substations.pop(), substations.pop()])
        for one in substations:
            self.host([one])
        for number in range(rng.randint(4, 9)):
            timeline.at(rng.uniform(0, FAULTS_UNTIL_S * 0.8), lambda number=number: self.submit(f"r{number}"))
        timeline.after(rng.uniform(0, 5), self.faults.befall)
        timeline.at(FAULTS_UNTIL_S, self.faults.heal)
        timeline.after(AUDIT_EVERY_S, self._look)
        timeline.run_until(lambda: self.is_over)
        self.judge.conclude(self.gateway.accepted)

    def submit(self, name):
        energy_j = round(SECOND_J * self.rng.uniform(0.5, 8))
        departs = (
            self.ledger.now_ms() + round(self.rng.uniform(5_000, 40_000))
            if self.rng.random() < self.weather.departs
            else None
        )
        wait_max_ms = self.rng.choice((20_000, 60_000))
        request = new_request(
            name, energy_requested_j=energy_j, idempotency_key=name, body_hash="", departs_at_ms=departs,
            wait_max_ms=wait_max_ms, priority=self.rng.randint(0, 2),
        )  # fmt: skip
        self.note("client", "submits", name, energy_j)
        self.requests.append(name)
        self.gateway.submit(request)
        if self.rng.random() < self.weather.withdraws:
            self.timeline.after(self.rng.uniform(0, 25), lambda: self.gateway.withdraw(name))

    def _look(self):
        self.judge.audit()
        if self.faults.are_over and not self.living(self.substations):
            self.host([min(self.kinds)])
        is_at_rest = self.faults.are_over and self.judge.at_rest() and len(self.gateway.accepted) == len(self.requests)
        sessions = [
            session for one in self.living(self.substations) for worker in one.workers.values()
            for session in worker.substation.sessions
        ]  # fmt: skip
        self.is_over = (is_at_rest and not sessions) or self.timeline.now_s > AT_REST_BY_S
        self.timeline.after(AUDIT_EVERY_S, self._look)


class _Log:
    """The product's log lines, as events of the trace."""

    def __init__(self, world):
        self._world = world

    def info(self, event, **fields):
        with contextlib.suppress(RuntimeError):
            name = asyncio.get_running_loop().process.name
            self._world.note(name, event, *fields.items())

    warning = error = info


def run(seed, variant=SOUND, weather=ANY_WEATHER):
    """One run; returns its world, raises `Violation` with what led to it."""
    with pytest.MonkeyPatch.context() as patch:
        world = World(seed, variant, weather)
        for module in ("substations.heartbeat", "substations.worker", "balancer.sweeper"):
            patch.setattr(f"{module}.monotonic_s", lambda: asyncio.get_running_loop().time())
            patch.setattr(f"{module}.log", _Log(world))
        for where, name, replacement in variant.patches:
            patch.setattr(where, name, replacement)
        try:
            world.run()
        except Violation as broken:
            raise Violation(f"seed {seed}, {variant.name}: {broken}\n{_told(world)}") from None
        return world


def _told(world, most=150):
    lines = world.trace[-most:]
    return "\n".join(f"{at_s:9.3f}  {' '.join(map(str, what))}" for at_s, *what in lines)
