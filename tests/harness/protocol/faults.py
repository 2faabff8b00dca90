"""What befalls the protocol's model: kills, freezes, cuts, outages, clock steps, rivals; and at last all is mended."""

from dataclasses import dataclass, field

HOUR_MS = 3_600_000
_RARE = ("claim", "end", "lose", "release", "take")
"""Calls whose crash points are tried more often."""


@dataclass(frozen=True, eq=False)
class Weather:
    """What mostly befalls in a run; a directed one leads to where rare faults would have to meet."""

    faults: tuple[str, ...] = ()
    """The only ones, and of substations; empty: all."""
    mean_pauses_s: tuple[float, ...] = (1.5, 4.0, 10.0)
    whiles_s: tuple[tuple[float, float], ...] = ((0.2, 3), (4, 8), (8, 20))
    """How long things are frozen, cut off or gone: mostly about as long as a lease and a sweep take."""
    slow: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Calls on their way to the ledger ("beat sent") or back ("beat done"): (chance, least s, most s)."""
    reaches: tuple[float, ...] = (0.2, 0.5, 1.0)
    """The part of what the connectors can take for which a substation's limit reaches; less makes grants last."""
    departs: float = 0.3
    withdraws: float = 0.2
    crashes: tuple[float, ...] = (0, 0.002, 0.01)


class Faults:
    """Lets things happen to a world until they are healed."""

    def __init__(self, world, rng, weather):
        self._world = world
        self._rng = rng
        self._weather = weather
        self._mean_pause_s = rng.choice(weather.mean_pauses_s)
        self._crashes = rng.choice(weather.crashes)
        self.are_over = False
        self._ledger_back_at_s = 0.0

    def befall(self):
        """One fault, and the next after a while."""
        if self.are_over:
            return
        world, only = self._world, self._weather.faults
        if only or self._rng.random() < 0.85:
            whom = world.substations
            faults = {one: weight for one, weight in _OF_SUBSTATIONS.items() if not only or one.__name__ in only}
        else:
            whom, faults = world.balancers, _OF_BALANCERS
        living = world.living(whom)
        if living:
            one = self._rng.choice(living)
            self._rng.choices(list(faults), list(faults.values()))[0](self, one)
        world.timeline.after(self._rng.expovariate(1 / self._mean_pause_s), self.befall)

    def crash_point(self, where, process):
        """Befall a process between two steps that random faults would hardly ever part."""
        if self.are_over or self._rng.random() >= self._crashes * (5 if where.startswith(_RARE) else 1):
            return
        self._world.note(process.name, "at", where)
        may_die = process in self._world.substations
        what = self._rng.choice((self.freeze, self.cut_off, *([self.kill] if may_die else ())))
        self._later(0, lambda: what(process))

    def watched_since_s(self):
        """Since when one and the same balancer has been able to sweep."""
        world = self._world
        fit = [
            one.healthy_since_s
            for one in world.living(world.balancers)
            if not one.is_frozen and not one.connection.loses_requests and not one.connection.loses_replies
        ]
        if world.ledger.is_out or not fit or not world.network.is_fair:
            return world.timeline.now_s
        return max(min(fit), self._ledger_back_at_s)

    def _a_while_s(self):
        return self._rng.uniform(*self._rng.choice(self._weather.whiles_s))

    def _later(self, pause_s, act):
        """Do it then, unless all faults are over by then and mended."""
        self._world.timeline.after(pause_s, lambda: None if self.are_over else act())

    # --- each fault -----------------------------------------------------------------------------------------------

    def kill(self, one):
        self._world.note(one.name, "is killed")
        one.kill()
        self._succeed(one)

    def _succeed(self, one):
        if self._rng.random() < 0.8:
            pause_s = self._rng.choice((0.1, self._a_while_s()))
            self._later(pause_s, lambda: self._world.host(sorted(one.hosted)))

    def terminate(self, one):
        self._world.note(one.name, "is told to stop")
        one.run(one.stopping.set)
        self._world.timeline.after(10.0, one.kill)
        self._succeed(one)

    def rival(self, one):
        self._world.host(sorted(one.hosted))

    def freeze(self, one):
        if not one.is_frozen:
            self._world.note(one.name, "is frozen")
            one.freeze()
            self._later(self._a_while_s(), lambda: self._thaw(one))
            self._maybe_a_rival(one)

    def _maybe_a_rival(self, one):
        if one in self._world.substations and self._rng.random() < 0.3:
            self.rival(one)

    def _thaw(self, one):
        if one.is_frozen and one.is_alive:
            self._world.note(one.name, "goes on")
            one.healthy_since_s = self._world.timeline.now_s
            one.thaw()

    def cut_off(self, one):
        how = self._rng.choice(("loses_requests", "loses_replies"))
        self._world.note(one.name, how)
        setattr(one.connection, how, True)
        self._maybe_a_rival(one)
        self._later(self._a_while_s(), lambda: self._reconnect(one))

    def _reconnect(self, one):
        one.connection.loses_requests = one.connection.loses_replies = False
        one.healthy_since_s = self._world.timeline.now_s
        self._world.note(one.name, "is connected again")

    def outage(self, _):
        self._world.note("ledger", "is out")
        self._world.ledger.is_out = True
        self._later(self._a_while_s(), self._ledger_returns)

    def _ledger_returns(self):
        self._world.note("ledger", "is back")
        self._world.ledger.is_out = False
        self._ledger_back_at_s = self._world.timeline.now_s

    def step_clock(self, _):
        step_ms = self._rng.choice((-HOUR_MS, HOUR_MS, -3_000, 3_000))
        self._world.note("ledger", "clock steps", step_ms)
        self._world.ledger.clock_steps_ms += step_ms

    def kill_balancer(self, one):
        self._world.note(one.name, "is killed")
        one.kill()
        self._later(self._a_while_s(), self._world.balance)

    def heal(self):
        """All faults end; some substations never return, one at least does."""
        world = self._world
        world.note("world", "heals")
        self.are_over = True
        world.network.heal()
        self._ledger_returns()  # from now on somebody can sweep for certain
        for one in world.living([world.gateway, *world.substations, *world.balancers]):
            self._reconnect(one)
            self._thaw(one)
        if not world.living(world.balancers):
            world.balance()
        staying = [one for one in world.living(world.substations) if not one.stopping.is_set()]
        hosted = set().union(*(one.hosted for one in staying))
        for one in world.kinds:
            if one not in hosted and (not hosted or self._rng.random() < 0.5):
                hosted.add(one)
                world.host([one])


_OF_SUBSTATIONS = {
    Faults.kill: 4,
    Faults.terminate: 3,
    Faults.rival: 1,
    Faults.freeze: 4,
    Faults.cut_off: 4,
    Faults.outage: 1,
    Faults.step_clock: 1,
}
_OF_BALANCERS = {Faults.kill_balancer: 1, Faults.freeze: 1, Faults.cut_off: 1}
