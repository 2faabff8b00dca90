import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ledger.states import FOLLOWERS, TERMINAL, Status, Transition, ended_once, faults

ACCEPTED, ASSIGNED, CHARGING = Status.ACCEPTED, Status.ASSIGNED, Status.CHARGING


def line(status, attempt, substation=None, epoch=None):
    return Transition(0, status, substation, attempt, epoch, "any")


START = line(ACCEPTED, 0)
COMPLETED = [START, line(ASSIGNED, 1, "a"), line(CHARGING, 1, "a", 1), line(Status.COMPLETED, 1, "a", 1)]


@pytest.mark.parametrize(
    "history",
    [
        COMPLETED,
        [START, line(Status.EXPIRED, 0)],
        [START, line(Status.CANCELLED, 0)],
        [START, line(ASSIGNED, 1, "a"), line(Status.EXPIRED, 1, "a")],
        [START, line(ASSIGNED, 1, "a"), line(ACCEPTED, 1), line(ASSIGNED, 2, "b"), line(Status.CANCELLED, 2, "b")],
        [*COMPLETED[:3], line(CHARGING, 1, "a", 2), line(CHARGING, 1, "a", 5), line(Status.STOPPED, 1, "a", 5)],
        [*COMPLETED[:3], line(ACCEPTED, 1), line(ASSIGNED, 2, "b"), line(CHARGING, 2, "b", 1), line(Status.FAILED, 2)],
    ],
)
def test_a_history_along_the_arrows_is_sound_and_ended_once(history):
    assert faults(history) == []
    assert ended_once(history)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_sound_history_without_an_end_is_no_ended_one(length):
    assert faults(COMPLETED[:length]) == []
    assert not ended_once(COMPLETED[:length])


@pytest.mark.parametrize(
    ("history", "told"),
    [
        ([], "empty"),
        ([line(ASSIGNED, 1, "a")], "begins with assigned"),
        ([line(ACCEPTED, 1)], "begins with accepted at attempt 1"),
        ([START, line(CHARGING, 0, None, 1)], "accepted → charging is no transition"),
        ([START, line(ACCEPTED, 0)], "accepted → accepted is no transition"),
        ([*COMPLETED, line(Status.COMPLETED, 1, "a", 1)], "completed → completed is no transition"),
        ([*COMPLETED, line(ACCEPTED, 1)], "completed → accepted is no transition"),
        ([*COMPLETED[:2], line(Status.COMPLETED, 1, "a", 1)], "assigned → completed is no transition"),
        ([*COMPLETED[:2], line(ASSIGNED, 2, "b")], "assigned → assigned is no transition"),
        ([START, line(ASSIGNED, 0, "a")], "attempt went from 0 to 0"),
        ([START, line(ASSIGNED, 2, "a")], "attempt went from 0 to 2"),
        ([START, line(ASSIGNED, 1, "a"), line(ACCEPTED, 2)], "attempt went from 1 to 2"),
        ([START, line(ASSIGNED, 1, "a"), line(ACCEPTED, 0)], "attempt went from 1 to 0"),
        ([*COMPLETED[:2], line(CHARGING, 1, "b", 1)], "a was assigned, b charges"),
        ([*COMPLETED[:3], line(CHARGING, 1, "b", 2)], "a was assigned, b charges"),
        ([*COMPLETED[:3], line(CHARGING, 1, "a", 1)], "epoch went from 1 to 1"),
        ([*COMPLETED[:3], line(CHARGING, 1, "a", 2), line(CHARGING, 1, "a", 1)], "epoch went from 2 to 1"),
    ],
)
def test_a_broken_history_is_found_out_and_named(history, told):
    assert any(told in fault for fault in faults(history))
    assert not ended_once(history)


def test_every_fault_of_a_history_is_told():
    history = [line(ASSIGNED, 1, "a"), line(CHARGING, 2, "b", 1), line(ACCEPTED, 2), line(CHARGING, 2, None, 1)]

    assert len(faults(history)) == 4


def test_two_sessions_one_after_another_without_a_new_assignment_are_a_fault():
    history = [*COMPLETED[:3], line(ACCEPTED, 1), line(CHARGING, 1, "a", 1)]

    assert faults(history)


@given(st.lists(st.sampled_from(list(Status)), max_size=8))
def test_no_order_of_states_has_anything_after_its_end(states):
    attempt, history = 0, []
    for status in states:
        attempt += status is ASSIGNED
        history.append(line(status, attempt, "a", len(history)))
    ends = [place for place, one in enumerate(states) if one in TERMINAL]

    if ends and ends != [len(states) - 1]:
        assert faults(history)
    if ended_once(history):
        assert ends == [len(states) - 1]


@given(st.data())
def test_any_walk_along_the_arrows_is_sound(data):
    history = [START]
    while followers := sorted(FOLLOWERS[history[-1].status]):
        after = data.draw(st.sampled_from(followers))
        before = history[-1]
        substation = data.draw(st.sampled_from("ab")) if after is ASSIGNED else before.substation
        history.append(line(after, before.attempt + (after is ASSIGNED), substation, (before.epoch or 0) + 1))
        if len(history) > 12:
            break

    assert faults(history) == []
    assert ended_once(history) == (history[-1].status in TERMINAL)


def test_every_state_has_its_followers_and_the_five_ends_have_none():
    assert set(FOLLOWERS) == set(Status)
    assert {status for status, followers in FOLLOWERS.items() if not followers} == TERMINAL
    assert {str(status) for status in TERMINAL} == {"completed", "stopped", "cancelled", "expired", "failed"}


def test_nothing_charges_that_was_not_assigned():
    assert {status for status, followers in FOLLOWERS.items() if CHARGING in followers} == {ASSIGNED, CHARGING}
