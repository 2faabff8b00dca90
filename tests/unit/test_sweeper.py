import asyncio

import pytest
from prometheus_client import CollectorRegistry

from balancer.metrics import BalancerMetrics
from balancer.sweeper import UNCLAIMED_AFTER_S, Patience, Sweeper
from services.errors import LedgerUnavailable
from services.ledger.leases import Lease
from services.ledger.records import Breach, Swept
from services.ledger.states import Reason, Status
from services.messages import Hint

HELD = Lease("north", 3, 40, "somebody #1", is_released=False)


class Ledger:
    def __init__(self):
        self.shown = [HELD]
        self.lost = []
        self.unnamed = []
        self.taken_back = []

    async def leases(self):
        return self.shown

    async def lose(self, leases):
        self.lost += leases
        return [
            Swept("a", Status.ACCEPTED, Reason.SUBSTATION_LOST),
            Swept("b", Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED),
        ]

    async def lose_orphans(self):
        return []

    async def unclaimed(self):
        return self.unnamed

    async def take_back(self, hints):
        self.taken_back += hints
        return {hint.request_id for hint in hints}

    async def expire(self):
        return []


@pytest.fixture
def ledger():
    return Ledger()


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def sweeper(ledger, registry, monkeypatch):
    one = Sweeper(ledger, BalancerMetrics(registry), asyncio.Event(), 5.0)
    one.now_s = 100.0
    monkeypatch.setattr("balancer.sweeper.monotonic_s", lambda: one.now_s)
    return one


async def sweep_for(sweeper, seconds):
    for _ in range(round(seconds / 0.5)):
        await sweeper.sweep()
        sweeper.now_s += 0.5


async def test_a_silent_substation_is_given_up_after_lease_and_margin_and_its_rows_are_counted(
    sweeper, ledger, registry
):
    await sweep_for(sweeper, 6.0)
    assert ledger.lost == []

    await sweeper.sweep()

    assert ledger.lost == [HELD]
    assert sweeper._look_again.is_set()
    assert registry.get_sample_value("evenload_balancer_swept_total", {"kind": "substation_lost"}) == 1
    assert registry.get_sample_value("evenload_balancer_swept_total", {"kind": "completed"}) == 1
    assert registry.get_sample_value("evenload_balancer_reassignments_total", {"reason": "substation_lost"}) == 1


async def test_a_balancer_that_was_frozen_gives_nobody_up_at_its_first_look(sweeper, ledger):
    await sweeper.sweep()
    sweeper.now_s += 40

    await sweeper.sweep()

    assert ledger.lost == []


async def test_silence_counts_from_the_answer_of_the_first_read_however_slow_it_was(sweeper, ledger):
    """The lease may have been renewed just before the ledger read it."""
    latencies_s = iter([2.0, 0.0, 0.0, 0.0, 0.0])

    async def read():
        sweeper.now_s += next(latencies_s)
        return [HELD]

    ledger.leases = read
    await sweeper.sweep()
    for _ in range(2):
        sweeper.now_s += 2.0
        await sweeper.sweep()
    sweeper.now_s += 1.9
    await sweeper.sweep()
    assert ledger.lost == []

    sweeper.now_s += 0.1
    await sweeper.sweep()
    assert ledger.lost == [HELD]


async def test_an_assignment_that_no_beat_names_is_taken_back_in_time_and_a_new_one_waits_anew(sweeper, ledger):
    ledger.shown = []
    ledger.unnamed = [Hint("a", 1)]
    await sweep_for(sweeper, UNCLAIMED_AFTER_S)
    assert ledger.taken_back == []
    ledger.unnamed = [Hint("a", 1), Hint("a", 2)]

    await sweeper.sweep()

    assert ledger.taken_back == [Hint("a", 1)]


def test_patience_begins_anew_where_something_was_not_named():
    patience = Patience(10.0)

    assert patience.standing(["a"], 1.0) == [("a", 0.0)]
    assert patience.standing(["a", "b"], 3.0) == [("a", 2.0), ("b", 0.0)]
    assert patience.standing(["b"], 4.0) == [("b", 1.0)]
    assert patience.standing(["a"], 5.0) == [("a", 0.0)]


async def test_a_breach_is_counted_once_and_one_that_may_pass_only_after_its_time(sweeper, ledger, registry):
    at_once, later = Breach("ended twice", "a", 0), Breach("waiting past its time", "b", 30)

    async def audit():
        return [at_once, later]

    ledger.audit = audit
    for seconds in range(0, 60, 5):
        counted = 1 if seconds < 30 else 2
        await sweeper.audit()
        sweeper.now_s += 5
        assert registry.get_sample_value("evenload_balancer_conservation_breaches_total") == counted


async def test_a_step_that_fails_holds_up_none_of_the_others(sweeper, ledger):
    ledger.unnamed = [Hint("a", 1)]

    async def fail():
        raise LedgerUnavailable("away")

    ledger.lose_orphans = fail
    for _ in range(21):
        with pytest.raises(LedgerUnavailable):
            await sweeper.sweep()
        sweeper.now_s += 0.5

    assert ledger.taken_back == [Hint("a", 1)]


def test_patience_begins_anew_after_a_time_without_a_look():
    patience = Patience(5.0)

    assert patience.standing(["a"], 100.0) == [("a", 0.0)]
    assert patience.standing(["a"], 105.0) == [("a", 5.0)]
    assert patience.standing(["a"], 110.1) == [("a", 0.0)]
