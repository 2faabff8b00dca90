"""The schedule of faults is the same for the same seed, leaves out no kind, and can be carried out."""

import collections

import pytest
from harness.chaos_schedule import BROKER, Kind, coming_and_going, schedule
from harness.chaos_stack import SERVICES

SEEDS = range(20)


def test_a_seed_makes_the_same_faults_again_and_another_seed_others():
    assert schedule(7, 100, 840, SERVICES) == schedule(7, 100, 840, SERVICES) != schedule(8, 100, 840, SERVICES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("faults", "over_s"), [(15, 60), (100, 840)])
def test_as_many_as_asked_and_a_tenth_of_them_kill_the_broker(seed, faults, over_s):
    found = schedule(seed, faults, over_s, SERVICES)
    assert len(found) == faults
    kills = [one for one in found if (one.kind, one.target) == (Kind.KILL, BROKER)]
    assert len(kills) >= faults / 10
    assert {one.target for one in found} <= {BROKER, *SERVICES}
    assert all(one.at_s >= 0 for one in found)
    assert all(1 <= one.for_s <= 40 for one in found if one.kind not in (Kind.KILL, Kind.CUT))


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_is_broken_twice_at_once(seed):
    busy_until_s = collections.defaultdict(float)
    for one in schedule(seed, 100, 840, SERVICES):
        assert one.at_s >= busy_until_s[one.target], one
        busy_until_s[one.target] = one.at_s + one.for_s


def test_every_kind_comes_up():
    found = {(one.kind, one.target == BROKER) for seed in SEEDS for one in schedule(seed, 100, 840, SERVICES)}
    services = {(kind, False) for kind in (Kind.KILL, Kind.FREEZE, Kind.LEAVE, Kind.CUT, Kind.STALL)}
    assert found == services | {(kind, True) for kind in (Kind.KILL, Kind.ALARM, Kind.LEAVE, Kind.FREEZE)}


def test_who_comes_and_goes_is_away_half_of_the_time():
    found = coming_and_going("substations-2", 3, 10)
    assert [(one.at_s, one.kind, one.for_s) for one in found] == [(at_s, Kind.LEAVE, 5) for at_s in (5, 15, 25)]
    assert str(found[0]) == "    5.0 s  leave substations-2 for 5.0 s"
