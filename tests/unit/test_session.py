import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.records import Claimed
from services.ledger.states import Reason, Status
from substations.session import HOLD_S, Session

KWH_J = 3_600_000


def session(delivered_j=0, *, energy_j=10 * KWH_J, power_w=11_000, departs_at_s=None):
    return Session(
        Claimed("r", 1, "north", 1, 1, power_w, energy_j, 0, energy_j), delivered_j, energy_j, 0.0, departs_at_s
    )


@pytest.mark.parametrize(
    ("delivered", "wanted_w"),
    [(0.0, 11_000), (0.5, 11_000), (0.8, 11_000), (0.85, 8_800), (0.9, 6_600), (0.95, 4_400), (1.0, 2_200)],
)
def test_the_wish_falls_in_a_straight_line_over_the_last_fifth_to_a_fifth(delivered, wanted_w):
    assert session(round(delivered * 10 * KWH_J)).wanted_w == wanted_w


@given(
    energy_j=st.integers(1, 10**10), power_w=st.integers(1, 10**6), parts=st.tuples(st.floats(0, 1), st.floats(0, 1))
)
def test_the_wish_never_grows_never_exceeds_the_vehicles_power_and_never_becomes_nothing(energy_j, power_w, parts):
    early, late = sorted(
        min(energy_j, math.floor(part * energy_j)) for part in parts
    )  # fmt: skip
    before_w, after_w = (session(one, energy_j=energy_j, power_w=power_w).wanted_w for one in (early, late))

    assert power_w >= before_w >= after_w >= max(1, power_w // 5)


def test_beyond_a_fifth_of_its_energy_a_full_charge_takes_a_fifth_longer():
    # ∫ over the last fifth of 1 ÷ (1 − 0.8 x) is 0.2 × ln 5 ÷ 0.8, about 0.402 instead of 0.2.
    one = session()
    now_s = 0.0
    while one.owed_j > 0:
        one.give(one.wanted_w, now_s, 1.0)
        one.deliver(now_s, now_s + 1, 1.0)
        now_s += 1

    assert now_s == pytest.approx(10 * KWH_J / 11_000 * (0.8 + 0.2 * math.log(5) / 0.8), rel=0.005)


def test_a_vehicle_gets_nothing_after_its_departure_however_long_the_tick():
    one = session(departs_at_s=3.0)
    one.give(1_000, 0.0, 60.0)

    assert one.deliver(0.0, 10.0, 60.0) == 3 * 60 * 1_000
    assert one.deliver(10.0, 20.0, 60.0) == 0


def test_nobody_gets_more_than_it_asked_for_whatever_was_granted():
    one = session(energy_j=5_000)
    one.granted_j = 9_000
    one.give(1_000, 0.0, 60.0)

    assert one.deliver(0.0, 10.0, 60.0) == 5_000
    assert one.deliver(10.0, 20.0, 60.0) == 0


def test_a_departed_vehicle_is_stopped_with_what_it_got():
    one = session(departs_at_s=3.0)
    one.judge(2.999)
    assert one.end is None

    one.judge(3.0)
    assert (one.end, one.outcome, one.power_w, one.is_running) == (Reason.EV_DISCONNECTED, Status.STOPPED, 0, False)


@pytest.mark.parametrize("departs_at_s", [None, 3.0])
@pytest.mark.parametrize("stop_asked", [False, True])
def test_whoever_has_all_of_its_energy_is_completed_whatever_else(departs_at_s, stop_asked):
    one = session(10 * KWH_J, departs_at_s=departs_at_s)
    one.stop_asked = stop_asked

    one.judge(5.0)

    assert (one.end, one.outcome) == (Reason.ENERGY_LIMIT_REACHED, Status.COMPLETED)


def test_an_end_keeps_its_reason():
    one = session(departs_at_s=3.0)
    one.judge(4.0)
    one.stop_asked = True
    one.judge(5.0)

    assert (one.end, one.outcome) == (Reason.EV_DISCONNECTED, Status.STOPPED)


def test_laxity_is_what_is_left_of_the_stay_at_full_power_in_session_seconds():
    one = session(departs_at_s=100.0, energy_j=11_000 * 1_000)

    assert one.wish(40.0, 60.0).laxity_s == 60 * 60 - 1_000
    assert session().wish(40.0, 60.0).laxity_s == math.inf


def test_it_is_held_after_each_change_for_the_minimum_time_of_its_own_clock_and_not_as_a_newcomer():
    one = session()
    assert not one.wish(0.0, 60.0).is_held
    one.give(None, 0.0, 60.0)
    assert not one.wish(0.0, 60.0).is_held

    one.give(5_000, 1.0, 60.0)
    assert one.wish(1.0 + HOLD_S / 60 - 0.01, 60.0).is_held
    one.give(6_000, 4.0, 60.0)
    assert not one.wish(1.0 + HOLD_S / 60, 60.0).is_held
    assert one.wish(7.0, 60.0).since_s == 1.0

    one.give(None, 8.0, 60.0)
    assert (one.is_paused, one.power_w, one.since_s, one.wish(8.0, 60.0).is_held) == (True, 0, 8.0, True)
