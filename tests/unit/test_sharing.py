import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substations.sharing import POLICIES, Wish, share

MAX_MIN, LEAST_LAXITY, FIRST_COME = (POLICIES[name] for name in ("max-min", "least-laxity", "first-come"))

LIMITS = st.integers(0, 100_000)
FLOORS = st.sampled_from([0, 1_380, 4_200])
ANY_POLICY = st.sampled_from(list(POLICIES.values()))
WISHES = st.lists(
    st.builds(
        Wish,
        request_id=st.uuids().map(str),
        arrival=st.integers(0, 5),
        wanted_w=st.one_of(st.integers(1, 50_000), st.sampled_from([1_000, 2_200, 11_000])),
        laxity_s=st.one_of(st.just(math.inf), st.integers(-3, 3).map(float)),
        is_running=st.booleans(),
        since_s=st.integers(0, 5).map(float),
        ran_s=st.integers(0, 2).map(float),
        is_held=st.booleans(),
    ),
    max_size=20,
    unique_by=lambda one: one.request_id,
)


def wishes_of(*wanted_w, **changes):
    """Newcomers `a`, `b`, `c` … in the order of their arrival."""
    kept = {"laxity_s": math.inf, "is_running": False, "since_s": 0.0}
    return [
        Wish(request_id=chr(97 + number), arrival=number, wanted_w=wish, **{**kept, **changes})
        for number, wish in enumerate(wanted_w)
    ]


def idle_w(limit_w, powers_w):
    return limit_w - sum(powers_w.values())


@given(LIMITS, FLOORS, WISHES, ANY_POLICY)
def test_the_sum_is_within_the_limit_and_nobody_runs_below_the_floor_or_gets_more_than_wished(
    limit_w, floor_w, wishes, policy
):
    powers_w = share(limit_w, floor_w, wishes, policy)
    by_id = {one.request_id: one for one in wishes}

    assert sum(powers_w.values()) <= limit_w
    for request_id, power_w in powers_w.items():
        assert min(floor_w, by_id[request_id].wanted_w) <= power_w <= by_id[request_id].wanted_w


@given(LIMITS, FLOORS, WISHES, ANY_POLICY)
def test_no_power_is_left_idle_while_somebody_could_take_it(limit_w, floor_w, wishes, policy):
    powers_w = share(limit_w, floor_w, wishes, policy)

    assert sum(powers_w.values()) == min(limit_w, sum(one.wanted_w for one in wishes if one.request_id in powers_w))
    if idle_w(limit_w, powers_w) > 0:
        paused = [one for one in wishes if one.request_id not in powers_w]
        assert all(min(floor_w, one.wanted_w) > idle_w(limit_w, powers_w) for one in paused)


@given(LIMITS, FLOORS, WISHES.flatmap(lambda wishes: st.tuples(st.just(wishes), st.permutations(wishes))), ANY_POLICY)
def test_the_order_of_the_sessions_does_not_matter(limit_w, floor_w, orders, policy):
    one, other = orders

    assert share(limit_w, floor_w, one, policy) == share(limit_w, floor_w, other, policy)


@given(LIMITS, FLOORS, WISHES, ANY_POLICY)
def test_who_was_started_a_short_while_ago_runs_on_where_the_limit_reaches_for_all_of_them(
    limit_w, floor_w, wishes, policy
):
    held = [one for one in wishes if one.is_held and one.is_running]
    powers_w = share(limit_w, floor_w, wishes, policy)

    if sum(min(floor_w, one.wanted_w) for one in held) <= limit_w:
        assert {one.request_id for one in held} <= powers_w.keys()


@given(LIMITS, FLOORS, WISHES, ANY_POLICY)
def test_who_was_paused_a_short_while_ago_starts_only_where_power_would_be_left_idle(limit_w, floor_w, wishes, policy):
    powers_w = share(limit_w, floor_w, wishes, policy)
    early = [one for one in wishes if one.is_held and not one.is_running and one.request_id in powers_w]
    others_w = sum(one.wanted_w for one in wishes if one.request_id in powers_w and one not in early)

    assert all(others_w + min(floor_w, one.wanted_w) <= limit_w for one in early)


@given(LIMITS, FLOORS, WISHES, ANY_POLICY)
def test_nobody_is_paused_where_the_limit_reaches_for_every_floor(limit_w, floor_w, wishes, policy):
    free = [dataclasses.replace(one, is_held=False) for one in wishes]
    powers_w = share(limit_w, floor_w, free, policy)

    if sum(min(floor_w, one.wanted_w) for one in free) <= limit_w:
        assert powers_w.keys() == {one.request_id for one in free}


@given(LIMITS, FLOORS, WISHES)
def test_max_min_gives_whoever_is_cut_short_no_less_than_anybody_else(limit_w, floor_w, wishes):
    # Nobody can get more without somebody getting less who has no more (1 W for whole numbers).
    powers_w = share(limit_w, floor_w, wishes, MAX_MIN)
    cut_short = [
        powers_w[one.request_id] for one in wishes if powers_w.get(one.request_id, one.wanted_w) < one.wanted_w
    ]

    if cut_short:
        assert min(cut_short) >= max(powers_w.values()) - 1


@given(LIMITS, FLOORS, WISHES, st.sampled_from([LEAST_LAXITY, FIRST_COME]))
def test_the_policies_with_an_order_fill_the_wishes_one_after_the_other(limit_w, floor_w, wishes, policy):
    powers_w = share(limit_w, floor_w, wishes, policy)
    running = sorted(
        (one for one in wishes if one.request_id in powers_w),
        key=lambda one: (one.laxity_s if policy is LEAST_LAXITY else 0, one.arrival, one.request_id),
    )

    full = [powers_w[one.request_id] == one.wanted_w for one in running]
    beyond_the_first_cut = running[full.index(False) + 1 :] if False in full else []
    assert all(powers_w[one.request_id] == min(floor_w, one.wanted_w) for one in beyond_the_first_cut)


@pytest.mark.parametrize(
    ("limit_w", "floor_w", "wanted_w", "powers_w"),
    [
        (304_000, 1_380, [11_000] * 10, [11_000] * 10),
        (304_000, 1_380, [11_000] * 40, [7_600] * 40),
        (30, 0, [5, 50, 50], [5, 13, 12]),
        (30, 12, [50, 5, 50], [13, 5, 12]),
        (100, 0, [22, 3, 150, 43], [22, 3, 37, 38]),
        (7, 0, [7, 7], [4, 3]),
        (1, 0, [9, 9, 9], [1, 0, 0]),
        (0, 0, [9, 9], [0, 0]),
        (10, 0, [], []),
        (29, 10, [50, 50, 50], [15, 14, None]),
        (24, 10, [50, 50, 5], [12, 12, None]),
        (25, 10, [50, 50, 5], [10, 10, 5]),
        (9, 10, [50, 50], [None, None]),
        (9, 10, [50, 9], [None, 9]),
        (-5, 0, [9], [None]),
    ],
)
def test_max_min_examples_worked_out_by_hand(limit_w, floor_w, wanted_w, powers_w):
    wishes = wishes_of(*wanted_w)
    found = share(limit_w, floor_w, wishes, MAX_MIN)

    assert [found.get(one.request_id) for one in wishes] == powers_w


def test_first_come_gives_full_wishes_by_arrival_above_the_floor():
    wishes = wishes_of(11_000, 11_000, 11_000)

    assert share(20_000, 0, wishes, FIRST_COME) == {"a": 11_000, "b": 9_000, "c": 0}
    assert share(20_000, 1_380, wishes, FIRST_COME) == {"a": 11_000, "b": 7_620, "c": 1_380}
    assert share(3_000, 1_380, wishes, FIRST_COME) == {"a": 1_620, "b": 1_380}


def test_least_laxity_gives_the_most_urgent_its_full_wish_and_whoever_stays_what_is_left():
    a, b, c, d = wishes_of(11_000, 11_000, 11_000, 11_000)
    wishes = [a, b, dataclasses.replace(c, laxity_s=50.0), dataclasses.replace(d, laxity_s=-20.0)]

    assert share(20_000, 0, wishes, LEAST_LAXITY) == {"d": 11_000, "c": 9_000, "a": 0, "b": 0}
    assert share(3_000, 1_380, wishes, LEAST_LAXITY) == {"d": 1_620, "c": 1_380}


def test_sessions_take_turns_the_longest_paused_starts_for_the_longest_running():
    ran_long, ran_short, paused_long, paused_short = wishes_of(11_000, 11_000, 11_000, 11_000)
    wishes = [
        dataclasses.replace(ran_long, is_running=True, since_s=1.0),
        dataclasses.replace(ran_short, is_running=True, since_s=2.0),
        dataclasses.replace(paused_long, since_s=3.0),
        dataclasses.replace(paused_short, since_s=4.0, is_held=True),
    ]

    assert share(3_000, 1_380, wishes, MAX_MIN) == {"b": 1_500, "c": 1_500}


def test_small_floors_do_not_overtake_a_large_one_that_waits_for_room():
    large, small = wishes_of(11_000, 1_000)
    held = Wish("held", 9, 11_000, math.inf, is_running=True, since_s=0.0, is_held=True)

    assert share(2_700, 1_380, [large, small, held], MAX_MIN) == {"held": 2_700}
    # But power that nobody else takes is given to whom it is enough for.
    weak = dataclasses.replace(held, wanted_w=1_500)
    assert share(2_700, 1_380, [large, small, weak], MAX_MIN) == {"held": 1_500, "b": 1_000}
