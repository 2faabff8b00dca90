"""The schedule of faults is the same for the same seed, leaves out no kind, and can be carried out."""

import collections
import itertools

import pytest
from harness.chaos_faults import INFLICT
from harness.chaos_kinds import SPECS, Kind, Part, kinds_for
from harness.chaos_schedule import (
    AT_ONCE_MAX,
    BINDINGS,
    BROKER,
    SERVICES,
    TARGETS,
    Fault,
    Phase,
    coming_and_going,
    length_s,
    load_s,
    schedule,
)

SEEDS = range(20)
ALL = list(Kind)


def faults_of(phases):
    return [fault for phase in phases for fault in phase.faults]


def test_a_seed_makes_the_same_faults_again_and_another_seed_others():
    assert schedule(7, 100, ALL) == schedule(7, 100, ALL) != schedule(8, 100, ALL)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ledger", ["sqlite", "postgres"])
def test_as_many_as_asked_and_every_kind_of_that_database_among_them(seed, ledger):
    kinds, left_out = kinds_for(ledger, has_small_disk=True)
    found = faults_of(schedule(seed, 100, kinds))
    numbers = collections.Counter(one.kind for one in found)
    assert len(found) == 100
    assert numbers.keys() == set(kinds) == set(ALL) - left_out.keys()
    assert all(numbers[kind] >= 2 * SPECS[kind].weight for kind in kinds)


@pytest.mark.parametrize("seed", SEEDS)
def test_at_most_three_are_broken_at_once_and_nothing_twice(seed):
    phases = schedule(seed, 100, ALL)
    assert {len(one.faults) for one in phases} == set(range(1, AT_ONCE_MAX + 1))
    for phase in phases:
        targets = [target for fault in phase.faults for target in fault.targets]
        assert len(targets) == len(set(targets)), phase
        parts = collections.Counter(fault.part for fault in phase.faults)
        assert max(parts[Part.BROKER] + any(BROKER in one.targets for one in phase.faults if one.part is Part.SERVICE),
                   parts[Part.LEDGER]) <= 1, phase  # fmt: skip
        assert phase.is_single or Kind.TWIN not in {one.kind for one in phase.faults}, phase
        # A fault that begins after all others are healed would be alone.
        ends_s = max(2.0, phase.faults[0].for_s)
        assert all(one.at_s <= ends_s for one in phase.faults), phase


@pytest.mark.parametrize("seed", SEEDS)
def test_a_phase_begins_after_the_one_before_and_faults_last_as_long_as_they_may(seed):
    phases = schedule(seed, 100, ALL, longest_s=8.0)
    for before, after in itertools.pairwise(phases):
        assert after.at_s >= before.at_s + before.lasts_s
    for one in faults_of(phases):
        most_s = min(8.0, SPECS[one.kind].longest_s)
        assert (1.0 <= one.for_s <= most_s) if most_s else one.for_s == 0.0, one


def test_a_long_load_is_broken_until_its_end():
    phases = schedule(1, 60, ALL, over_s=7_200.0)
    assert 6_500 < length_s(phases) < 7_500
    assert length_s(schedule(1, 60, ALL)) < 1_500
    assert length_s([]) == load_s([]) == 0
    assert load_s(phases) >= length_s(phases) + len(phases), "phases may end later than planned"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [Kind.EXCHANGE, Kind.QUEUE, Kind.BINDING, Kind.RIGHTS, Kind.TWIN, Kind.LEDGER_MOVED])
def test_each_of_what_may_be_broken_is_broken_before_any_is_again(kind, seed):
    targets = [one.targets for one in faults_of(schedule(seed, len(TARGETS[kind]), [kind]))]
    assert sorted(targets) == sorted((one,) for one in TARGETS[kind])


def test_all_of_one_service_are_killed_in_the_same_instant_and_sometimes_the_broker_is_among_them():
    phases = [phase for seed in SEEDS for phase in schedule(seed, 10, [Kind.KILL_SEVERAL])]
    targets = {one.targets for one in faults_of(phases)}
    assert {("gateway-1", "gateway-2"), ("balancer-1", "balancer-2"), ("substations-1", "substations-2")} <= targets
    assert all(2 <= len(one) <= 4 and set(one) <= {BROKER, *SERVICES} for one in targets)
    assert {phase.ends_broker for phase in phases} == {True, False}


def test_only_kinds_that_end_the_broker_are_given_the_time_that_it_needs_to_start():
    ending = {kind for kind in ALL if Phase(0.0, (Fault(0.0, kind, _whom(kind)),)).ends_broker}
    assert ending == {Kind.BROKER_KILL, Kind.BROKER_LEAVE, Kind.BROKER_WIPE, Kind.KILL_ALL}
    assert Phase(0.0, (Fault(0.0, Kind.KILL_SEVERAL, (BROKER, "gateway-1")),)).ends_broker
    assert Phase(0.0, (Fault(0.0, Kind.ALARM, (BROKER,)), Fault(0.0, Kind.BROKER_KILL, (BROKER,)))).ends_broker


def _whom(kind):
    return (BROKER,) if SPECS[kind].part is Part.BROKER else ("gateway-1",)


def test_all_services_and_the_broker_are_killed_at_once_and_nothing_but_the_ledger_is_broken_meanwhile():
    phases = [one for seed in SEEDS for one in schedule(seed, 100, ALL)]
    whole = [(one, fault) for one in phases for fault in one.faults if fault.kind is Kind.KILL_ALL]
    assert {fault.targets for _, fault in whole} == {(BROKER, *SERVICES)}
    assert {fault.part for phase, mine in whole for fault in phase.faults if fault is not mine} == {Part.LEDGER}


def test_what_cannot_be_had_is_left_out_with_a_reason():
    kinds, left_out = kinds_for("sqlite", has_small_disk=False)
    assert Kind.DISK_FULL not in kinds
    assert left_out[Kind.DISK_FULL] == "no small file system can be mounted here: run it as root"
    assert left_out[Kind.POSTGRES_FREEZE] == "not on sqlite"


def test_every_kind_can_be_told_and_done():
    assert INFLICT.keys() == SPECS.keys() == set(ALL)
    assert "charge.assignments>charge.substation.north" in BINDINGS


def test_who_comes_and_goes_is_away_half_of_the_time():
    found = coming_and_going("substations-2", 3, 10)
    assert [one.at_s for one in found] == [5, 15, 25]
    assert str(found[0]) == "    5.0 s  leave substations-2 for 5.0 s"
