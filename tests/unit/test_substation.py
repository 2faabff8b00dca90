import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.records import Claimed, Ending, Heartbeat, Orders
from services.ledger.states import Reason, Status
from services.messages import Hint
from substations.substation import REMEMBER_ENDED_S, Substation

KWH_J = 3_600_000
ORDERS = Orders(0, 304_000, operative=True)


def substation(**changes):
    kept = {
        "id": "north",
        "rated_w": 380_000,
        "limit_w": 304_000,
        "connectors": 4,
        "bays": 2,
        "epoch": 3,
        "fence_at_s": math.inf,
        "speed": 60.0,
    }
    return Substation(**{"ticked_at_s": 0.0, **kept, **changes})


def claimed(request_id="r", *, attempt=1, number=1, power_w=11_000, energy_j=KWH_J, delivered_j=0, departs_in_ms=None):
    return Claimed(request_id, attempt, "north", 3, number, power_w, energy_j, delivered_j, energy_j, departs_in_ms)


def end_of(request_id, attempt=1):
    return Ending(request_id, attempt, "north", 3, Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED, 0)


def tick_until_ended(one, *, step_s=0.1, ticks=100_000):
    now_s = one.ticked_at_s
    for _ in range(ticks):
        now_s += step_s
        if endings := one.tick(now_s):
            return endings
    raise AssertionError("no session ended")


def test_a_session_charges_from_the_first_tick_on_and_delivers_power_times_time():
    one = substation()
    one.start(claimed(power_w=10_000), one.ticked_at_s)
    assert one.power_w == 0

    one.tick(1.0)
    assert one.power_w == 10_000
    assert one.progress()[0].energy_delivered_j == 0

    one.tick(1.5)
    assert one.progress()[0].energy_delivered_j == 10_000 * 0.5 * 60


@given(
    energies_j=st.lists(st.integers(1, 5_000_000), min_size=1, max_size=4),
    power_w=st.integers(500, 50_000),
    step_s=st.floats(0.05, 20),
)
def test_a_session_ends_with_exactly_the_energy_that_was_requested(energies_j, power_w, step_s):
    one = substation(limit_w=20_000)
    for number, energy_j in enumerate(energies_j, 1):
        one.start(claimed(f"r{number}", number=number, power_w=power_w, energy_j=energy_j), one.ticked_at_s)
    delivered = {}
    now_s = 0.0
    while one.sessions:
        now_s += step_s
        for ending in one.tick(now_s):
            assert (ending.status, ending.reason) == (Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED)
            delivered[ending.request_id] = ending.energy_delivered_j
            one.finish(ending, now_s, counts=True)

    assert delivered == {f"r{number}": energy_j for number, energy_j in enumerate(energies_j, 1)}
    assert one.energy_total_j == sum(energies_j)
    assert one.power_w == 0


@given(
    limit_w=st.integers(1, 100_000),
    powers_w=st.lists(st.integers(1, 50_000), min_size=1, max_size=6),
    steps_s=st.lists(st.floats(0, 5), min_size=1, max_size=10),
)
def test_no_tick_gives_more_power_than_the_limit_or_more_energy_than_that_power_allows(limit_w, powers_w, steps_s):
    one = substation(limit_w=limit_w, connectors=6)
    for number, power_w in enumerate(powers_w):
        one.start(claimed(f"r{number}", power_w=power_w, energy_j=20_000_000), one.ticked_at_s)
    now_s = 0.0
    for step_s in steps_s:
        now_s += step_s
        one.tick(now_s)

        assert one.power_w <= limit_w
        assert all(session.power_w <= session.claimed.power_max_w for session in one.sessions.values())
        assert one.energy_total_j <= limit_w * 60 * now_s + 1  # 1 J: sums of floats are rounded


@given(power_w=st.integers(1, 2_000), speed=st.sampled_from([0.5, 1.0, 60.0]))
def test_short_ticks_lose_no_energy_so_that_even_the_weakest_session_ends(power_w, speed):
    one = substation(speed=speed)
    one.start(claimed(power_w=power_w, energy_j=10 * power_w), one.ticked_at_s)

    one.tick(0.0)
    for number in range(1, 101):
        one.tick(number * 0.01)

    assert one.energy_total_j == pytest.approx(min(10 * power_w, power_w * 1.0 * speed), abs=1)


def test_more_sessions_than_the_limit_can_serve_share_it_equally():
    one = substation(limit_w=20_000)
    for number in range(4):
        one.start(claimed(f"r{number}", power_w=11_000), one.ticked_at_s)

    one.tick(0.1)

    assert [session.power_w for session in one.sessions.values()] == [5_000] * 4
    assert (one.power_w, one.demand_w) == (20_000, 44_000)


def test_what_an_ended_session_leaves_goes_to_the_others_within_the_same_tick():
    one = substation(limit_w=10_000)
    one.start(claimed("short", power_w=10_000, energy_j=5_000 * 60), one.ticked_at_s)
    one.start(claimed("long", power_w=10_000, energy_j=KWH_J * 9), one.ticked_at_s)
    one.tick(0.0)
    assert [session.power_w for session in one.sessions.values()] == [5_000, 5_000]

    (ending,) = one.tick(1.0)

    assert ending.request_id == "short"
    assert one.sessions["long"].power_w == one.power_w == 10_000


def test_starting_the_same_request_twice_starts_one_session():
    one = substation()

    assert one.start(claimed(), one.ticked_at_s)
    one.tick(0.0)
    one.tick(0.5)
    delivered_j = one.progress()[0].energy_delivered_j

    assert not one.start(claimed(), one.ticked_at_s)
    assert len(one.sessions) == 1
    assert one.progress()[0].energy_delivered_j == delivered_j > 0


def test_a_resumed_session_owes_only_what_was_not_delivered_before():
    one = substation()
    one.start(claimed(number=0, energy_j=KWH_J, delivered_j=KWH_J - 1_000), one.ticked_at_s)

    (ending,) = tick_until_ended(one)

    assert ending.energy_delivered_j == KWH_J
    assert one.energy_total_j == 1_000
    assert one.claims_total == 0


def test_a_resumed_session_that_owes_nothing_ends_at_the_next_tick_and_delivers_nothing():
    one = substation()
    one.start(claimed(number=0, energy_j=KWH_J, delivered_j=KWH_J), one.ticked_at_s)

    (ending,) = one.tick(5.0)

    assert ending.energy_delivered_j == KWH_J
    assert one.energy_total_j == 0


def test_an_ended_session_is_told_at_every_tick_and_keeps_its_connector_until_the_ledger_knows():
    one = substation(connectors=1)
    one.start(claimed(), one.ticked_at_s)
    (ending,) = tick_until_ended(one)

    assert one.tick(one.ticked_at_s + 1) == [ending]
    assert (one.free_connectors, one.power_w, one.demand_w) == (0, 0, 11_000)

    one.finish(end_of("r"), one.ticked_at_s, counts=True)
    assert (one.free_connectors, one.demand_w) == (1, 0)
    assert one.tick(one.ticked_at_s + 1) == []


def test_a_request_is_not_started_again_after_its_end_whoever_asks_late():
    one = substation()
    one.start(claimed(), one.ticked_at_s)
    tick_until_ended(one)
    ended_at_s = one.ticked_at_s
    one.finish(end_of("r"), ended_at_s, counts=True)

    one.tick(ended_at_s + REMEMBER_ENDED_S - 1)

    assert not one.start(claimed(), one.ticked_at_s)
    assert one.adopt([claimed()], one.ticked_at_s) == 0
    assert one.sessions == {}


def test_the_next_attempt_of_a_request_may_come_back_to_the_same_substation():
    one = substation()
    one.start(claimed(attempt=1), one.ticked_at_s)
    tick_until_ended(one)
    one.finish(end_of("r"), one.ticked_at_s, counts=False)

    assert one.start(claimed(attempt=2, number=2), one.ticked_at_s)


def test_what_ended_is_forgotten_after_a_while_so_that_memory_does_not_grow_for_ever():
    one = substation()
    one.start(claimed(), one.ticked_at_s)
    tick_until_ended(one)
    one.finish(end_of("r"), one.ticked_at_s, counts=True)

    one.tick(one.ticked_at_s + REMEMBER_ENDED_S + 1)

    assert one.start(claimed(), one.ticked_at_s)


def test_an_end_that_was_not_ours_frees_the_connector_and_is_not_counted():
    one = substation()
    one.start(claimed(), one.ticked_at_s)
    tick_until_ended(one)

    one.finish(end_of("r"), one.ticked_at_s, counts=False)

    assert one.sessions == {}
    assert sum(one.ends_by_reason.values()) == 0


def test_finishing_somebody_unknown_or_somebody_twice_changes_nothing():
    one = substation()
    one.start(claimed(), one.ticked_at_s)
    tick_until_ended(one)
    one.finish(end_of("r"), one.ticked_at_s, counts=True)

    one.finish(end_of("r"), one.ticked_at_s, counts=True)
    one.finish(end_of("stranger"), one.ticked_at_s, counts=True)

    assert one.ends_by_reason == {Reason.ENERGY_LIMIT_REACHED: 1}


def test_the_numbers_of_claims_and_ends_are_the_highest_seen_in_whatever_order_they_come():
    one = substation()
    for number in (2, 3, 1):
        one.start(claimed(f"r{number}", number=number, energy_j=1), one.ticked_at_s)
    one.tick(0.0)
    one.tick(1.0)
    for number in (3, 1, 2):
        one.finish(end_of(f"r{number}"), 1.0, counts=True)

    assert (one.claims_total, sum(one.ends_by_reason.values())) == (3, 3)


def test_time_that_runs_backwards_delivers_nothing_and_takes_nothing_back():
    one = substation()
    one.start(claimed(energy_j=KWH_J), one.ticked_at_s)
    one.tick(10.0)
    one.tick(11.0)
    before_j = one.energy_total_j

    one.tick(5.0)
    assert one.energy_total_j == before_j == one.progress()[0].energy_delivered_j

    one.tick(6.0)
    assert one.energy_total_j == 2 * before_j


def test_the_bays_keep_who_stands_there_and_then_take_who_comes_in_order():
    a, b, c, d = (Hint(name, 1) for name in "abcd")
    one = substation(bays=2)

    assert one.park([b, c]) == []
    assert one.park([a, c, d]) == [d]  # b is not held any more
    assert one.in_bays == [c, a]
    one.vacate([c, d])
    assert one.in_bays == [a]


def test_progress_names_every_session_with_the_epoch_of_the_substation():
    one = substation(epoch=3)
    one.start(claimed("a", attempt=4, delivered_j=12), one.ticked_at_s)
    one.start(claimed("b"), one.ticked_at_s)

    assert [(line.request_id, line.attempt, line.substation, line.epoch) for line in one.progress()] == [
        ("a", 4, "north", 3),
        ("b", 1, "north", 3),
    ]
    assert one.progress()[0].energy_delivered_j == 12


def test_adopting_starts_only_what_does_not_run_here():
    one = substation()
    one.start(claimed("a"), one.ticked_at_s)

    assert one.adopt([claimed("a"), claimed("b", number=2), claimed("c", number=3)], one.ticked_at_s) == 2
    assert set(one.sessions) == {"a", "b", "c"}


def test_a_stopped_session_ends_at_the_next_tick_with_the_energy_it_got():
    one = substation()
    one.start(claimed("r", energy_j=36_000_000), one.ticked_at_s)
    one.tick(0.0)
    one.tick(1.0)
    delivered_j = one.sessions["r"].delivered_j

    assert one.stop([("r", 1), ("stranger", 1)]) == 1
    assert one.stop([("r", 1)]) == 0
    one.tick(1.0)
    [ending] = one.tick(5.0)

    assert (ending.status, ending.reason, ending.energy_delivered_j) == (Status.STOPPED, Reason.REMOTE, delivered_j)
    assert one.power_w == 0
    one.finish(end_of("r"), 5.0, counts=True)
    assert one.ends_by_reason == {Reason.ENERGY_LIMIT_REACHED: 0, Reason.REMOTE: 1}


def test_a_stop_that_a_beats_answer_tells_of_ends_the_session_at_the_next_tick():
    one = substation()
    one.start(claimed("stopped", energy_j=36_000_000), one.ticked_at_s)
    one.start(claimed("goes on", number=2, energy_j=36_000_000), one.ticked_at_s)
    one.tick(1.0)
    told = one.beat("me")
    charging = (replace(claimed("stopped"), stop_asked=True), claimed("goes on", number=2))

    assert one.hear(Heartbeat("north", 3, (), (), charging, ORDERS), told, 1.0) == (0, 1)
    [ending] = one.tick(2.0)

    assert (ending.request_id, ending.status, ending.reason) == ("stopped", Status.STOPPED, Reason.REMOTE)


def test_a_stop_of_another_attempt_and_one_after_the_last_joule_change_nothing():
    one = substation()
    one.start(claimed("r", energy_j=1), one.ticked_at_s)
    one.tick(0.0)
    assert one.stop([("r", 7)]) == 0
    [ending] = one.tick(1.0)
    one.stop([("r", 1)])

    assert one.tick(2.0) == [ending]
    assert ending.status is Status.COMPLETED


def test_a_vehicle_that_departs_is_stopped_at_its_departure_counted_from_its_start():
    one = substation(ticked_at_s=1_000.0)
    one.start(claimed("r", power_w=10_000, energy_j=36_000_000, departs_in_ms=2_000), 1_000.0)
    one.tick(1_000.0)
    assert one.tick(1_001.5) == []

    [ending] = one.tick(1_005.0)

    assert (ending.status, ending.reason) == (Status.STOPPED, Reason.EV_DISCONNECTED)
    assert ending.energy_delivered_j == one.energy_total_j == 10_000 * 60 * 2
    one.finish(end_of("r"), 1_005.0, counts=True)
    assert one.ends_by_reason == {Reason.ENERGY_LIMIT_REACHED: 0, Reason.EV_DISCONNECTED: 1}


def test_a_vehicle_that_left_while_its_substation_was_away_gets_nothing_more():
    one = substation(ticked_at_s=1_000.0)
    one.adopt([claimed("r", delivered_j=500, departs_in_ms=-3_000)], 1_000.0)

    [ending] = one.tick(1_000.1)

    assert (ending.reason, ending.energy_delivered_j, one.energy_total_j) == (Reason.EV_DISCONNECTED, 500, 0)


def test_demand_is_what_the_ledgers_rows_add_up_to_whatever_taper_and_pauses_leave():
    one = substation(limit_w=1_500, floor_w=1_380)
    one.start(claimed("full", delivered_j=KWH_J * 9 // 10), 0.0)
    one.start(claimed("empty"), 0.0)

    one.tick(0.0)

    assert (one.power_w, one.demand_w) == (1_500, 22_000)
    assert sorted(session.is_paused for session in one.sessions.values()) == [False, True]


def test_a_connector_is_free_only_where_the_limit_has_a_floors_power_for_it():
    one = substation(connectors=4, limit_w=3_000, floor_w=1_380)
    assert one.free_connectors == 2

    one.start(claimed(), 0.0)

    assert one.free_connectors == 1
    assert substation(connectors=4, limit_w=3_000).free_connectors == 4


def test_behind_the_fence_nothing_is_delivered_and_afterwards_it_goes_on_with_the_exact_count():
    one = substation(fence_at_s=10.0)
    one.start(claimed(energy_j=100 * KWH_J), 0.0)
    one.tick(1.0)
    one.tick(9.9)
    before_j = one.progress()[0].energy_delivered_j
    assert before_j > 0

    for now_s in (10.0, 11.0, 5_000.0):
        assert one.tick(now_s) == []
        assert (one.power_w, one.progress()[0].energy_delivered_j) == (0, before_j)
    assert one.fenced_total == 1

    one.renew(5_000.0, 5.0)
    one.tick(5_000.1)
    assert one.progress()[0].energy_delivered_j == before_j
    one.tick(5_000.2)
    assert one.progress()[0].energy_delivered_j == pytest.approx(before_j + 11_000 * 0.1 * 60, abs=1)


def test_the_step_in_which_the_fence_was_passed_delivers_nothing_at_all():
    one = substation(fence_at_s=10.0)
    one.start(claimed(energy_j=100 * KWH_J), 0.0)
    one.tick(1.0)

    one.tick(40.0)

    assert one.progress()[0].energy_delivered_j == 0


def test_an_older_renewal_never_moves_the_fence_back():
    one = substation(fence_at_s=-math.inf)
    one.renew(10.0, 5.0)
    one.renew(8.0, 5.0)

    assert one.fence_at_s == 15.0


@given(granted_j=st.integers(0, KWH_J), step_s=st.floats(0.01, 100.0))
def test_nothing_is_delivered_beyond_the_grant_however_long_the_step(granted_j, step_s):
    one = substation()
    one.start(replace(claimed(), energy_granted_j=granted_j), 0.0)
    one.tick(0.1)

    for number in range(1, 4):
        one.tick(0.1 + number * step_s)
        assert one.progress()[0].energy_delivered_j <= granted_j


def test_a_beat_asks_for_so_much_that_a_session_goes_on_at_its_most_power_and_never_for_more_than_is_owed():
    one = substation(grant_s=180)
    one.start(claimed("long", energy_j=100 * KWH_J), 0.0)
    one.start(claimed("short", energy_j=1_000), 0.0)

    assert [line.energy_wanted_j for line in one.beat("me").progress] == [180 * 11_000, 1_000]


def test_a_grant_in_the_answer_lets_the_session_go_on_and_a_smaller_one_takes_nothing_back():
    one = substation()
    one.start(replace(claimed(), energy_granted_j=0), 0.0)
    told = one.beat("me")
    one.tick(1.0)
    one.tick(2.0)
    assert one.progress()[0].energy_delivered_j == 0

    one.hear(Heartbeat("north", 3, (), (), (replace(claimed(), energy_granted_j=5_000),), ORDERS), told, 2.0)
    one.hear(Heartbeat("north", 3, (), (), (replace(claimed(), energy_granted_j=4_000),), ORDERS), told, 2.0)
    one.tick(3.0)

    assert one.progress()[0].energy_delivered_j == 5_000


def test_a_new_tenure_begins_empty_and_takes_nothing_of_another():
    one = substation()
    one.start(claimed("a"), 0.0)
    one.park([Hint("b", 1)])

    one.begin(4)

    assert (one.sessions, one.in_bays, one.epoch) == ({}, [], 4)
    assert one.is_fenced(0.0)
    assert one.start(claimed("a"), 0.0) is False
    assert one.start(replace(claimed("a"), epoch=4), 0.0) is True


def test_an_end_of_another_tenure_frees_no_connector():
    one = substation()
    one.start(claimed("a"), 0.0)
    one.begin(4)
    one.start(replace(claimed("a"), epoch=4), 0.0)

    one.finish(end_of("a"), 1.0, counts=False)

    assert set(one.sessions) == {"a"}


def heard(one, **changes):
    one.hear(Heartbeat("north", 3, (), (), (), replace(ORDERS, **changes)), one.beat("me"), one.ticked_at_s)


def test_a_lowered_limit_holds_from_the_next_tick_on_and_is_told_as_applied_only_then():
    one = substation()
    for number in range(1, 5):
        one.start(claimed(f"r{number}", number=number, energy_j=100 * KWH_J), 0.0)
    one.tick(0.1)
    assert one.power_w == 44_000

    heard(one, number=1, limit_w=20_000)
    assert one.beat("me").applied is None
    one.tick(0.2)

    assert (one.power_w, one.limit_w) == (20_000, 20_000)
    assert one.beat("me").applied == Orders(1, 20_000, operative=True)


def test_no_vehicle_is_claimed_for_power_that_is_about_to_be_taken_away():
    one = substation(floor_w=10_000, connectors=40)
    assert one.free_connectors == 30

    heard(one, number=1, limit_w=20_000)

    assert one.free_connectors == 2


def test_a_substation_that_is_drained_lets_its_sessions_finish_and_takes_nobody():
    one = substation()
    one.start(claimed("runs", energy_j=KWH_J), 0.0)
    one.park([Hint("stands", 1)])

    heard(one, number=1, operative=False)

    assert (one.is_operative, one.free_connectors) == (False, 0)
    assert one.park([Hint("stands", 1), Hint("comes", 1)]) == [Hint("stands", 1), Hint("comes", 1)]
    assert [ending.status for ending in tick_until_ended(one)] == [Status.COMPLETED]

    heard(one, number=2)
    assert one.free_connectors == 3


def test_orders_are_forgotten_with_the_tenure():
    one = substation()
    heard(one, number=1, operative=False)
    one.tick(0.1)

    one.begin(4)

    assert (one.orders, one.applied) == (None, None)
