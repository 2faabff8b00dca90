"""The sweep on a real ledger in memory; the test moves the balancer's clock."""

import asyncio
import contextlib

import pytest
from harness.ledger import LET_THE_WAIT_PASS, registration
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from balancer.metrics import BalancerMetrics
from balancer.sweeper import UNCLAIMED_AFTER_S, Patience, SteadyClock, Sweeper
from services.errors import LedgerUnavailable
from services.ledger.records import Assignment
from services.ledger.states import Reason, Status
from services.messages import Hint

LEASE_S = 5.0
SWEEP_S = 0.5


class Balancer:
    """A balancer's sweep, its clock and what it counts."""

    def __init__(self, ledger, monkeypatch):
        self.now_s = 100.0
        self.look_again = asyncio.Event()
        self._registry = CollectorRegistry()
        self.sweeper = Sweeper(ledger.sweeping, BalancerMetrics(self._registry), self.look_again, LEASE_S)
        monkeypatch.setattr("balancer.sweeper.monotonic_s", lambda: self.now_s)

    async def sweep(self):
        """Take every step once."""
        for step in self.sweeper.steps:
            await step()

    async def sweep_for(self, seconds):
        for _ in range(round(seconds / SWEEP_S)):
            await self.sweep()
            self.now_s += SWEEP_S

    def counted(self, name, **labels):
        return self._registry.get_sample_value(f"evenload_balancer_{name}", labels)


@pytest.fixture
def balancer(ledger, monkeypatch):
    return Balancer(ledger, monkeypatch)


async def is_given_up(ledger):
    [lease] = await ledger.sweeping.leases()
    return lease.holder is None


async def test_a_silent_substation_is_given_up_after_lease_and_margin_and_its_rows_are_counted(ledger, balancer):
    await ledger.take(registration())
    await ledger.claimed("a", "b")
    ledger.execute("UPDATE request SET energy_granted_j = energy_requested_j WHERE id = 'b'")
    await balancer.sweep_for(6.0)
    assert not await is_given_up(ledger)

    await balancer.sweep()

    assert await is_given_up(ledger)
    assert [await ledger.status(name) for name in "ab"] == [Status.ACCEPTED, Status.COMPLETED]
    assert balancer.look_again.is_set()
    assert balancer.counted("swept_total", kind="substation_lost") == 1
    assert balancer.counted("swept_total", kind="completed") == 1
    assert balancer.counted("reassignments_total", reason="substation_lost") == 1


async def test_a_balancer_that_was_frozen_gives_nobody_up_at_its_first_look(ledger, balancer):
    await ledger.take(registration())
    await balancer.sweep()
    balancer.now_s += 40

    await balancer.sweep()

    assert not await is_given_up(ledger)


async def test_silence_counts_from_the_answer_of_the_first_read_however_slow_it_was(ledger, balancer):
    """The lease may have been renewed just before the ledger read it."""
    await ledger.take(registration())
    leases = ledger.hold("read")
    sweep = asyncio.create_task(balancer.sweep())
    await leases.ready()
    balancer.now_s += 2.0
    leases.let_go()
    await sweep
    for pause_s in (2.0, 2.0, 1.9):
        balancer.now_s += pause_s
        await balancer.sweep()
    assert not await is_given_up(ledger)

    balancer.now_s += 0.1
    await balancer.sweep()
    assert await is_given_up(ledger)


async def test_where_a_step_meets_a_bug_no_other_step_goes_on_beside_the_end_of_the_process(
    ledger, balancer, monkeypatch
):
    def meet_a_bug():
        raise ArithmeticError("a bug")

    monkeypatch.setattr(ledger.sweeping, "expire", meet_a_bug)

    with pytest.raises(ArithmeticError):
        await balancer.sweeper.sweep_for_ever()

    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(("write", "seconds"), [("lose", 6.0), ("take_back", UNCLAIMED_AFTER_S)])
async def test_what_a_look_found_before_an_outage_is_not_acted_on_after_it(ledger, balancer, write, seconds):
    if write == "lose":
        await ledger.take(registration())
        await ledger.claimed("a")
    else:
        await ledger.assigned("a")
    before = await ledger.status("a")
    await balancer.sweep_for(seconds)
    ledger.refused = {write}
    with pytest.raises(LedgerUnavailable):
        await balancer.sweep()
    assert write in ledger.calls

    ledger.refused = {"read"}
    for step in balancer.sweeper.steps:
        with contextlib.suppress(LedgerUnavailable):
            await step()

    ledger.refused = set()
    assert await ledger.status("a") is before


async def test_an_assignment_that_no_beat_names_is_taken_back_in_time(ledger, balancer):
    await ledger.assigned("a")
    await balancer.sweep_for(UNCLAIMED_AFTER_S)
    assert await ledger.status("a") is Status.ASSIGNED
    assert not balancer.look_again.is_set()

    await balancer.sweep()

    last = (await ledger.history("a"))[-1]
    assert (last.status, last.reason) == (Status.ACCEPTED, Reason.UNCLAIMED)
    assert balancer.look_again.is_set()
    assert balancer.counted("swept_total", kind="unclaimed") == 1
    assert balancer.counted("reassignments_total", reason="unclaimed") == 1


async def test_a_fresh_assignment_does_not_pay_for_the_time_of_the_one_before(ledger, balancer):
    await ledger.assigned("a")
    await balancer.sweep_for(UNCLAIMED_AFTER_S)
    await ledger.dispatch.give_back([Hint("a", 1)], "north", Reason.UNROUTABLE)
    assert await ledger.dispatch.assign([Assignment("a", 1, "north")]) == {"a"}

    await balancer.sweep_for(UNCLAIMED_AFTER_S)
    assert await ledger.status("a") is Status.ASSIGNED

    await balancer.sweep()
    assert await ledger.status("a") is Status.ACCEPTED


async def test_who_is_assigned_anew_while_the_sweep_takes_back_stays_where_it_is(ledger, balancer):
    await ledger.assigned("a")
    await balancer.sweep_for(UNCLAIMED_AFTER_S)
    leases, unclaimed = ledger.hold("read"), ledger.hold("read")
    leases.let_go()
    sweep = asyncio.create_task(balancer.sweep())
    await unclaimed.ready()
    await ledger.dispatch.give_back([Hint("a", 1)], "north", Reason.UNROUTABLE)
    assert await ledger.dispatch.assign([Assignment("a", 1, "north")]) == {"a"}

    unclaimed.let_go()
    await sweep

    assert ledger.calls.count("take_back") == 1
    assert await ledger.status("a") is Status.ASSIGNED


async def test_a_breach_is_counted_once_and_one_that_may_pass_only_after_its_time(ledger, balancer):
    await ledger.take(registration())
    await ledger.claimed("overdrawn")
    await ledger.accepted("overdue")
    ledger.execute("UPDATE request SET energy_granted_j = energy_requested_j + 1 WHERE id = 'overdrawn'")
    ledger.execute(LET_THE_WAIT_PASS, ["overdue"])

    for seconds in range(0, 60, 5):
        await balancer.sweeper.audit()
        balancer.now_s += 5
        assert balancer.counted("conservation_breaches_total") == (1 if seconds < 30 else 2)


async def test_breaches_of_a_promise_become_one_line_with_their_number_and_all_subjects(ledger, balancer):
    names = [f"overdrawn-{number:02d}" for number in range(25)]
    await ledger.take(registration())
    await ledger.claimed(*names)
    ledger.execute("UPDATE request SET energy_granted_j = energy_requested_j + 1")

    with capture_logs() as said:
        await balancer.sweeper.audit()
        await ledger.claimed("later")
        ledger.execute("UPDATE request SET energy_granted_j = energy_requested_j + 1 WHERE id = 'later'")
        await balancer.sweeper.audit()

    [first, second] = [line for line in said if line["event"] == "promise_broken"]
    assert (first["log_level"], first["breaches"], first["subjects"]) == ("error", 25, names)
    assert (second["promise"], second["breaches"], second["subjects"]) == (first["promise"], 1, ["later"])
    assert balancer.counted("conservation_breaches_total") == 26


def test_patience_begins_anew_where_something_was_not_named():
    patience = Patience(10.0)

    assert patience.standing(["a"], 1.0) == [("a", 0.0)]
    assert patience.standing(["a", "b"], 3.0) == [("a", 2.0), ("b", 0.0)]
    assert patience.standing(["b"], 4.0) == [("b", 1.0)]
    assert patience.standing(["a"], 5.0) == [("a", 0.0)]


def test_patience_begins_anew_after_a_time_without_a_look():
    patience = Patience(5.0)

    assert patience.standing(["a"], 100.0) == [("a", 0.0)]
    assert patience.standing(["a"], 105.0) == [("a", 5.0)]
    assert patience.standing(["a"], 110.1) == [("a", 0.0)]


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("work", "pauses"),
    [
        (lambda sweeper: sweeper.audit_for_ever(), ["AUDIT_EVERY_S"]),
        (lambda sweeper: sweeper.forget_for_ever(0), ["FORGET_EVERY_S", "FORGET_AGAIN_S"]),
    ],
    ids=["audit", "retention"],
)
async def test_while_the_ledger_is_away_audit_and_retention_try_again(ledger, balancer, monkeypatch, work, pauses):
    for one in pauses:
        monkeypatch.setattr(f"balancer.sweeper.{one}", 0)
    ledger.is_away = True
    running = asyncio.create_task(work(balancer.sweeper))
    await until(lambda: len(ledger.calls) > 2)

    ledger.is_away = False
    calls = len(ledger.calls)
    await until(lambda: len(ledger.calls) > calls + 2)

    assert not running.done()
    running.cancel()
    await asyncio.wait({running})


async def test_retention_forgets_what_has_ended_and_counts_it(ledger, balancer, monkeypatch):
    for one in ("FORGET_EVERY_S", "FORGET_AGAIN_S"):
        monkeypatch.setattr(f"balancer.sweeper.{one}", 0)
    await ledger.take(registration())
    await ledger.ended("a")
    ledger.now_ms += 1_000
    running = asyncio.create_task(balancer.sweeper.forget_for_ever(500))

    await until(lambda: balancer.counted("swept_total", kind="forgotten") == 1)

    assert await ledger.intake.request("a") is None
    running.cancel()
    await asyncio.wait({running})


async def test_a_balancer_that_has_just_started_forgets_nothing_yet(ledger, balancer):
    await ledger.take(registration())
    await ledger.ended("a")
    ledger.now_ms += 1_000
    running = asyncio.create_task(balancer.sweeper.forget_for_ever(500))
    for _ in range(20):
        await asyncio.sleep(0)

    assert await ledger.status("a") is Status.COMPLETED
    running.cancel()
    await asyncio.wait({running})


DAY_S = 86_400


async def test_a_step_of_the_databases_clock_makes_no_request_old_enough_to_be_forgotten(ledger, balancer, monkeypatch):
    for one in ("FORGET_EVERY_S", "FORGET_AGAIN_S"):
        monkeypatch.setattr(f"balancer.sweeper.{one}", 0)
    await ledger.take(registration())
    await ledger.ended("a")
    running = asyncio.create_task(balancer.sweeper.forget_for_ever(30 * DAY_S * 1000))

    async def rounds():
        calls = ledger.calls.count("forget")
        await until(lambda: ledger.calls.count("forget") >= calls + 3)

    def let_days_pass(days, *, by_the_database=True, by_the_balancer=True):
        ledger.now_ms += days * DAY_S * 1000 if by_the_database else 0
        balancer.now_s += days * DAY_S if by_the_balancer else 0

    await rounds()
    let_days_pass(31, by_the_balancer=False)
    await rounds()
    let_days_pass(29)
    await rounds()
    assert await ledger.status("a") is Status.COMPLETED

    let_days_pass(1)
    await until(lambda: balancer.counted("swept_total", kind="forgotten") == 1)
    running.cancel()
    await asyncio.wait({running})


@pytest.mark.parametrize(
    ("looks", "times_ms"),
    [
        ([(1_000, 5.0), (61_000, 65.0), (121_000, 125.0)], [1_000, 61_000, 121_000]),
        ([(1_000, 5.0), (3_600_000, 6.0), (3_601_000, 7.0)], [1_000, 2_000, 3_000]),
        ([(9_000, 5.0), (3_000, 6.0), (4_000, 7.0)], [9_000, 3_000, 4_000]),
        ([(1_000, 5.0), (9_000, 6.0), (3_000, 7.0), (4_000, 8.0)], [1_000, 2_000, 3_000, 4_000]),
    ],
    ids=["even", "a step forward", "a step back", "there and back"],
)
def test_a_steady_clock_follows_the_database_but_for_its_steps_forward(looks, times_ms):
    clock = SteadyClock()

    assert [clock.look(*look) for look in looks] == times_ms
