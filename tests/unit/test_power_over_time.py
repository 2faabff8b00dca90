"""A substation over many ticks: every tick keeps the promises, nobody flaps, and everybody gets a turn."""

import itertools
import math

import pytest
from harness.tick_trace import breaches, parsed
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.records import Claimed
from substations.session import HOLD_S
from substations.sharing import POLICIES
from substations.substation import Substation
from substations.tick_log import tick_line

KWH_J = 3_600_000
SPEED = 60.0
STEP_S = 0.5
STEP_SESSION_S = STEP_S * SPEED


def substation(policy="max-min", **changes):
    kept = {"limit_w": 10_000, "floor_w": 1_380, "connectors": 8, "speed": SPEED}
    return Substation(
        id="north",
        rated_w=380_000,
        bays=0,
        epoch=1,
        fence_at_s=math.inf,
        ticked_at_s=0.0,
        sharing=POLICIES[policy],
        **{**kept, **changes},
    )


def claimed(request_id, *, number=1, power_w=11_000, energy_j=1_000 * KWH_J, departs_in_ms=None):
    return Claimed(request_id, 1, "north", 1, number, power_w, energy_j, 0, energy_j, departs_in_ms)


STARTS = st.tuples(
    st.just("start"),
    st.sampled_from([700, 1_380, 2_300, 11_000, 22_000]),
    st.integers(1, 2 * KWH_J),
    st.none() | st.integers(-100, 20_000),
)
ACTIONS = st.one_of(
    STARTS,
    st.tuples(st.just("limit"), st.integers(0, 30_000)),
    st.tuples(st.just("stop"), st.integers(0, 20)),
    st.tuples(st.just("nothing")),
)


@given(
    policy=st.sampled_from(list(POLICIES)),
    floor_w=st.sampled_from([0, 1_380, 4_200]),
    steps=st.lists(st.tuples(st.floats(0, 4), ACTIONS), max_size=40),
)
def test_every_tick_of_any_day_keeps_the_promises(policy, floor_w, steps):
    one = substation(policy, floor_w=floor_w)
    lines, now_s = [], 0.0
    for number, (step_s, action) in enumerate(steps):
        now_s += step_s
        match action:
            case ("start", power_w, energy_j, departs_in_ms) if one.free_connectors > 0:
                one.start(
                    claimed(
                        f"r{number}", number=number, power_w=power_w, energy_j=energy_j, departs_in_ms=departs_in_ms
                    ),
                    now_s,
                )
            case ("limit", limit_w):
                one.limit_w = limit_w
            case ("stop", whom):
                one.stop([(f"r{whom}", 1)])
        endings = one.tick(now_s)
        lines.append(tick_line(one))
        for ending in endings[::2]:  # the ledger knows of some at once, of the others at a later tick
            one.finish(ending, now_s, counts=True)

    assert breaches(parsed("".join(lines)), SPEED) == []


@given(
    policy=st.sampled_from(list(POLICIES)),
    powers_w=st.lists(st.sampled_from([700, 1_380, 2_300, 11_000]), min_size=2, max_size=8),
    limits_w=st.lists(st.integers(1_380, 12_000), min_size=1, max_size=4),
    departs_in_ms=st.lists(st.none() | st.integers(200_000, 400_000), min_size=8, max_size=8),
)
def test_nobody_is_paused_or_started_again_within_the_minimum_time_unless_the_limit_fell_or_power_lay_idle(
    policy, powers_w, limits_w, departs_in_ms
):
    one = substation(policy)
    for number, power_w in enumerate(powers_w):
        one.start(claimed(f"r{number}", number=number, power_w=power_w, departs_in_ms=departs_in_ms[number]), 0.0)
    was, changed_tick, limits_seen_w = {}, {}, []
    for tick in range(len(limits_w) * 25):
        one.limit_w = limits_w[tick // 25]
        limits_seen_w.append(one.limit_w)
        one.tick(tick * STEP_S)
        early = []
        for request_id, session in one.sessions.items():
            if was.get(request_id, session.is_running) is session.is_running:
                was[request_id] = session.is_running
                continue
            was[request_id] = session.is_running
            since_tick = changed_tick.get(request_id)
            changed_tick[request_id] = tick
            if since_tick is None or (tick - since_tick) * STEP_SESSION_S >= HOLD_S:
                continue
            if session.is_running:
                early.append(session)
            else:
                assert one.limit_w < max(limits_seen_w[since_tick:]), "paused early though the limit had not fallen"
        others_w = sum(session.wanted_w for session in one.sessions.values() if session.is_running) - sum(
            session.wanted_w for session in early
        )
        assert all(others_w + min(one.floor_w, session.wanted_w) <= one.limit_w for session in early)


def longest_pauses(one, ticks):
    """The longest time without power of each session, in ticks."""
    longest, lasting = dict.fromkeys(one.sessions, 0), dict.fromkeys(one.sessions, 0)
    for tick in range(ticks):
        one.tick(tick * STEP_S)
        for request_id, session in one.sessions.items():
            lasting[request_id] = 0 if session.is_running else lasting[request_id] + 1
            longest[request_id] = max(longest[request_id], lasting[request_id])
    return longest


@given(
    powers_w=st.lists(st.sampled_from([300, 700, 1_380, 2_300, 11_000]), min_size=2, max_size=8),
    limit_w=st.integers(1_380, 6_000),
)
def test_with_far_too_small_a_limit_everybody_still_gets_a_turn(powers_w, limit_w):
    one = substation(limit_w=limit_w)
    for number, power_w in enumerate(powers_w):
        one.start(claimed(f"r{number}", number=number, power_w=power_w), 0.0)
    turn_ticks = math.ceil(HOLD_S / STEP_SESSION_S) + 1
    bound = 2 * (len(powers_w) + 1) * turn_ticks

    assert max(longest_pauses(one, 3 * bound).values()) <= bound


@pytest.mark.parametrize(
    ("sessions", "limit_w", "run_at_once"), [(2, 1_380, 1), (4, 3_000, 2), (7, 3_000, 2), (5, 4_200, 3), (8, 4_200, 3)]
)
def test_equal_sessions_wait_for_one_round_at_most_and_get_equal_energy(sessions, limit_w, run_at_once):
    one = substation(limit_w=limit_w)
    for number in range(sessions):
        one.start(claimed(f"r{number}", number=number), 0.0)
    turn_ticks = math.ceil(HOLD_S / STEP_SESSION_S)
    round_ticks = math.ceil(sessions / run_at_once) * turn_ticks

    longest = longest_pauses(one, 60 * round_ticks)

    assert max(longest.values()) <= round_ticks
    delivered_j = [session.delivered_j for session in one.sessions.values()]
    assert max(delivered_j) <= 1.05 * min(delivered_j)


def test_under_first_come_the_later_ones_wait_until_the_earlier_ones_have_what_they_asked_for():
    one = substation("first-come", limit_w=2_000)
    for number in range(3):
        one.start(claimed(f"r{number}", number=number, energy_j=KWH_J // 2), 0.0)
    ended = []
    for tick in itertools.count():
        for ending in one.tick(tick * STEP_S):
            ended.append(ending.request_id)
            one.finish(ending, one.ticked_at_s, counts=True)
        if not one.sessions:
            break
        assert [request_id for request_id, session in one.sessions.items() if session.is_running] == [
            min(one.sessions)
        ] or one.power_w == 2_000

    assert ended == ["r0", "r1", "r2"]
