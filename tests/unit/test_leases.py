from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.leases import Lease, SilenceWatch, is_lost, silence_s

LEASE_S = 5.0
HELD = Lease("north", 3, 40, "somebody #1", is_released=False)
MOVES = [
    replace(HELD, epoch=4),
    replace(HELD, renewals=41),
    replace(HELD, holder="another #2"),
    replace(HELD, holder=None),
    replace(HELD, is_released=True),
]


def silent_for(watch, lease, at_s):
    return watch.observe([lease], at_s)["north"]


def test_silence_counts_from_the_answer_of_the_read_that_showed_it_first():
    watch = SilenceWatch(LEASE_S)

    assert [silent_for(watch, HELD, at_s) for at_s in (100.0, 101.0, 102.5)] == [0.0, 1.0, 2.5]


@pytest.mark.parametrize("moved", MOVES)
def test_every_move_ends_the_silence(moved):
    watch = SilenceWatch(LEASE_S)
    silent_for(watch, HELD, 100.0)
    silent_for(watch, HELD, 102.0)

    assert silent_for(watch, moved, 103.0) == 0.0
    assert silent_for(watch, moved, 104.0) == 1.0


def test_the_coming_of_an_heir_does_not_end_it():
    watch = SilenceWatch(LEASE_S)
    silent_for(watch, HELD, 100.0)

    assert silent_for(watch, replace(HELD, heir="another #2"), 102.0) == 2.0


def test_an_observer_that_did_not_look_begins_anew():
    watch = SilenceWatch(LEASE_S)
    silent_for(watch, HELD, 100.0)

    assert silent_for(watch, HELD, 102.51) == 0.0
    assert silent_for(watch, HELD, 105.0) == pytest.approx(2.49)


@pytest.mark.parametrize(
    ("without_s", "silent_s"), [(2.0, [2.0, 2.0, 3.0]), (4.0, [2.5, 2.5, 3.5]), (6.5, [2.5, 0.0, 1.0])]
)
def test_time_without_an_answered_write_counts_for_half_a_lease_and_after_a_silence_all_begins_anew(
    without_s, silent_s
):
    watch = SilenceWatch(LEASE_S)
    for at_s in range(100, 100 + int(without_s) + 1):
        watch.observe([HELD], at_s, 99.0)
    ends_at_s = 100 + without_s

    seen = [watch.observe([HELD], *looks)["north"] for looks in [(ends_at_s, 99.0), (ends_at_s, ends_at_s)]]
    seen.append(watch.observe([HELD], ends_at_s + 1, ends_at_s + 1)["north"])

    assert seen == silent_s


def test_a_renewal_of_one_lease_shows_that_the_ledger_takes_writes():
    watch = SilenceWatch(LEASE_S)
    for at_s in range(7):
        south = replace(HELD, substation="south", renewals=at_s)
        silent_s = watch.observe([HELD, south], 100.0 + at_s, 0.0)

    assert silent_s == {"north": 6.0, "south": 0.0}


def test_who_was_out_of_sight_is_forgotten():
    watch = SilenceWatch(LEASE_S)
    silent_for(watch, HELD, 100.0)
    watch.observe([], 101.0)

    assert silent_for(watch, HELD, 102.0) == 0.0


@given(
    rates=st.tuples(st.floats(0.96, 1.04), st.floats(0.96, 1.04)),
    beats_s=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=8),
    looks_s=st.lists(st.floats(0.01, 2.0), min_size=3, max_size=60),
    latency_s=st.floats(0, 1.0),
)
def test_failure_21_nobody_is_given_up_who_still_charges_though_clocks_run_unlike(rates, beats_s, looks_s, latency_s):
    """In true time: the holder beats and falls silent; whenever an observer would act, the fence has been passed."""
    holder_rate, observer_rate = rates
    sent_at = 0.0
    renewals = []
    for pause_s in beats_s:
        renewals.append((sent_at, sent_at + latency_s))  # when it was sent, when the ledger shows it
        sent_at += pause_s + latency_s
    fence_at = renewals[-1][0] + LEASE_S / holder_rate
    watch, now = SilenceWatch(LEASE_S), 0.0
    for pause_s in looks_s:
        now += pause_s
        shown = sum(at <= now for _, at in renewals)
        lease = replace(HELD, renewals=shown)
        now += latency_s / 2  # the answer is under way
        silent_s = silent_for(watch, lease, now * observer_rate)
        if shown == len(renewals) and is_lost(lease, silent_s, LEASE_S):
            assert now >= fence_at


def test_the_sweep_leaves_time_to_an_heir_but_not_for_ever():
    awaited = replace(HELD, heir="another #2")
    silence = silence_s(LEASE_S)

    assert silence == pytest.approx(6.0)
    assert not is_lost(HELD, silence - 0.01, LEASE_S)
    assert is_lost(HELD, silence, LEASE_S)
    assert not is_lost(awaited, silence, LEASE_S)
    assert is_lost(awaited, 2 * silence, LEASE_S)


def test_what_nobody_holds_is_not_lost_again():
    assert not is_lost(replace(HELD, holder=None), 1_000.0, LEASE_S)


def test_a_released_lease_is_given_up_like_a_silent_one():
    assert is_lost(replace(HELD, is_released=True), silence_s(LEASE_S), LEASE_S)
