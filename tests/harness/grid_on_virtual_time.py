"""A grid area on virtual time, without faults: the product's balancer and substations, driven by a seed.

The clock, the ledger, the broker and the `substations` processes come from the protocol's model.
"""

import bisect
import contextlib
import itertools
import math
import random
from collections import Counter

import pytest
from harness.balancer_on_virtual_time import BalancerProcess, MetricsPages
from harness.ledger import new_request
from harness.protocol.clockwork import Clock, Timeline
from harness.protocol.ledger import ModelLedger, Network
from harness.protocol.neighbours import Broker, Gateway
from harness.protocol.processes import SubstationProcess
from harness.protocol.world import SOUND

from balancer.settings import BalancerSettings
from services.broker import topology
from services.grid import load_grid
from services.ledger.records import Registration
from services.messages import Hint

CLOCKED = ("balancer.watcher", "balancer.scraper", "balancer.sweeper", "substations.heartbeat", "substations.worker")
"""Modules that read the monotonic clock."""
LOGGED = (*CLOCKED, "balancer.dispatcher", "services.lifecycle")

CHARGING = "SELECT substation, count(*) FROM request WHERE status = 'charging' GROUP BY substation"
LOADS = """
SELECT substation, sum(power_max_w), count(*) FROM request WHERE status IN ('assigned', 'charging') GROUP BY substation
"""


class Area:
    """One run; all chance comes from the seed."""

    def __init__(self, grid, settings, *, loses, doubles):
        self.rng = random.Random(settings.seed)
        self.timeline = Timeline()
        self.clock = Clock(self.timeline, 1.0, 0.0)
        specs = load_grid(grid).substation
        self.limits_w = {spec.id: spec.limit_w for spec in specs}
        self.ledger = ModelLedger(self.timeline, {})
        self.onlooker = Onlooker(self)
        self.network = Network(self.rng, {})
        self.network.heal()
        self.broker = Broker(self.timeline, self.rng)
        self.broker.loses, self.broker.doubles, self.broker.is_late = loses, doubles, 0
        # The model's processes ask their world for these, too.
        self.variant, self.faults = SOUND, _NoFaults()
        self.judge = self.ledger.judge = self.onlooker
        self.pages = MetricsPages(self.rng)
        self.gateway = PublishingGateway(self, self.clock)
        self.balancer = BalancerProcess(self, settings)
        self._substations = []
        for spec in specs:  # not all at once, or all would beat and tick at the same moments
            self.timeline.at(self.rng.random(), lambda spec=spec: self._host(spec))
        self._numbers = itertools.count(1)

    def _host(self, spec):
        address = address_of(spec.id)
        kind = Registration(spec.id, spec.zone, spec.rated_w, spec.limit_w, spec.connectors, spec.waiting_bays, address)
        process = SubstationProcess(self, f"substation-{spec.id}", self.clock, [kind])
        self.pages.add(address, process.workers[spec.id].substation)
        self._substations.append(process)

    def submit(self, power_w, energy_j):
        new = new_request(f"r{next(self._numbers)}", power_max_w=power_w, energy_requested_j=energy_j)
        self.gateway.submit(new)

    def charging(self):
        """How many requests charge at each substation."""
        return Counter(dict(self.ledger.rows(CHARGING)))

    def run_until(self, is_so, what, within_s=30):
        """Let time pass until something is so."""
        give_up_at_s = self.timeline.now_s + within_s
        self.timeline.run_until(lambda: is_so() or self.timeline.now_s > give_up_at_s)
        assert is_so(), f"not within {within_s:g} s: {what}"

    def run_for(self, pause_s):
        end_s = self.timeline.now_s + pause_s
        self.timeline.run_until(lambda: self.timeline.now_s >= end_s)

    def run_until_up(self):
        """Until a published table shows that every substation takes vehicles; returns their ids, in its order."""

        def is_up():
            lines = self.onlooker.published[-1][0] if self.onlooker.published else {}
            return lines.keys() == self.limits_w.keys() and all(one["status"] == "Operative" for one in lines.values())

        self.run_until(is_up, "a table in which every substation takes vehicles")
        return list(self.onlooker.published[-1][0])

    def stop(self):
        """Stop everybody in order."""
        self.balancer.stop()
        for one in self._substations:
            one.run(one.stopping.set)
        self.run_until(lambda: not any(one.is_alive for one in (self.balancer, *self._substations)), "an orderly end")
        self.gateway.kill()


class Onlooker:
    """Notes each load table together with what the ledger knows at that moment.

    It takes the place of the model's judge. A load is (demand [W], vehicles at a connector, in a bay or on their way).
    """

    def __init__(self, area):
        self._area = area
        self.published = []
        """(a published table's lines, the ledger's loads), both by substation."""
        self.refreshed = []
        """(when, a refreshed table's loads, the ledger's loads)."""
        self._changed_at_s = [-math.inf]

    def see_published(self, lines):
        self.published.append(({one["substation"]: one for one in lines}, self.loads()))

    def see_refreshed(self, estimates):
        shown = {one.substation: (one.demand_w, one.taken) for one in estimates}
        self.refreshed.append((self._area.timeline.now_s, shown, self.loads()))

    def loads(self):
        """By the ledger's rows: all that was sent to each substation and has not ended."""
        loads = dict.fromkeys(self._area.limits_w, (0, 0))
        return loads | {one: (demand_w, taken) for one, demand_w, taken in self._area.ledger.rows(LOADS)}

    def calm_refreshes(self, still_s):
        """(the table's loads, the ledger's loads) of refreshes with no change of a load `still_s` before and after.

        Nothing was on its way between the ledger and the table then, so the two must be equal.
        """
        changed_at_s = [*self._changed_at_s, math.inf]
        for at_s, shown, known in self.refreshed:
            following = bisect.bisect(changed_at_s, at_s)
            if changed_at_s[following - 1] < at_s - still_s and at_s + still_s < changed_at_s[following]:
                yield shown, known

    def before_commit(self, _operation):
        pass

    def after_commit(self, operation, *_):
        if operation.name in ("assign", "give_back", "end"):
            self._changed_at_s.append(self._area.timeline.now_s)

    def see_tick(self, *_):
        pass

    def see(self, *_):
        pass


class PublishingGateway(Gateway):
    """The model's gateway. Like the product's, it also tells the balancer which requests it has accepted."""

    def __init__(self, area, clock):
        super().__init__(area, clock)
        self._broker = area.broker

    async def _submit(self, request):
        await super()._submit(request)
        self._broker.publish(topology.INTAKE, [Hint(request.request_id, 0)])


class _NoFaults:
    def crash_point(self, *_):
        pass


class _Silence:
    def info(self, *_, **__):
        pass

    warning = error = info


def address_of(substation):
    """Where its metrics are read."""
    return f"http://{substation}"


@contextlib.contextmanager
def running(grid, seed, *, policy="least-utilisation", scrape_interval_s=1.0, loses=0, doubles=0):
    """An area, stopped at the end. `loses` and `doubles` are the chances of a message to be lost or doubled."""
    settings = BalancerSettings(policy=policy, scrape_interval_s=scrape_interval_s, seed=seed)
    area = Area(grid, settings, loses=loses, doubles=doubles)
    with pytest.MonkeyPatch.context() as patch:
        area.balancer.connect(patch)
        for module in CLOCKED:
            patch.setattr(f"{module}.monotonic_s", area.clock.reading_s)
        for module in LOGGED:
            patch.setattr(f"{module}.log", _Silence())
        try:
            yield area
        finally:
            area.stop()
            area.ledger.close()
