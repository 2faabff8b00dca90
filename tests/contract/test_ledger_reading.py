"""What substations and balancers read back: the heartbeat, the waiting room, what readings do not show."""

import pytest
from harness.ledger import (
    HOLDER,
    SOON_MS,
    ending,
    let_the_vehicle_leave,
    let_the_wait_pass,
    new_request,
    progress,
    registration,
)

from services.ledger.records import Beat, Known, Unseen
from services.ledger.states import Reason, Status
from services.messages import Hint


async def test_progress_never_falls(ledger):
    await ledger.claimed("r")
    told = []
    for delivered_j in (5_000, 3_000, 5_000, 9_000):
        await ledger.beat(progress("r", delivered_j))
        told.append((await ledger.intake.request("r")).energy_delivered_j)

    assert told == [5_000, 5_000, 5_000, 9_000]
    assert len(await ledger.history("r")) == 3


@pytest.mark.parametrize(
    "wrong", [progress("r", 9, attempt=2), progress("r", 9, at="south"), progress("r", 9, epoch=2)]
)
async def test_progress_needs_the_right_attempt_substation_and_epoch(ledger, wrong):
    await ledger.claimed("r")

    await ledger.beat(wrong)
    await ledger.beat(wrong, at="south")

    assert (await ledger.intake.request("r")).energy_delivered_j == 0


async def test_progress_after_the_end_is_not_written(ledger):
    await ledger.claimed("r")
    await ledger.charging.end([ending("r", delivered_j=5_000)])

    await ledger.beat(progress("r", 9_000))

    assert (await ledger.intake.request("r")).energy_delivered_j == 5_000


async def test_a_beat_names_all_that_charge_there_known_or_not(ledger):
    await ledger.claimed("known", "unknown")
    await ledger.claimed("elsewhere", at="south")
    await ledger.ended("over")

    answer = await ledger.beat(progress("known", 0))

    assert (answer.substation, answer.epoch) == ("north", 1)
    assert [(one.request_id, one.attempt, one.epoch) for one in answer.charging] == [("known", 1, 1), ("unknown", 1, 1)]


async def test_a_heartbeat_of_several_substations_answers_for_each(ledger):
    await ledger.claimed("n1", "n2", at="north")
    await ledger.claimed("s1", at="south")
    await ledger.assigned("s2", to="south")

    answers = await ledger.tenancy.beat([Beat(one, 1, HOLDER, (), (), 0) for one in ("north", "south")], 0)

    assert {one.substation: ([row.request_id for row in one.charging], list(one.assigned)) for one in answers} == {
        "north": (["n1", "n2"], []),
        "south": (["s1"], [("s2", 1)]),
    }


async def test_a_heartbeat_names_assigned_rows_and_which_of_them_are_overdue(ledger, path):
    await ledger.assigned("old")
    await ledger.assigned("elsewhere", to="south")
    await ledger.assigned("late")
    await ledger.claimed("charging")
    await ledger.accepted("accepted")
    let_the_wait_pass(path, "late")

    at_once = await ledger.beat()
    patient = await ledger.beat(adopt_after_ms=3_600_000)

    assert at_once.assigned == at_once.overdue == patient.assigned == (("old", 1),)
    assert patient.overdue == ()


async def test_forgotten_assignments_come_in_the_order_of_the_waiting_room(ledger):
    await ledger.assigned("patient")
    await ledger.assigned("hurried", wait_max_ms=SOON_MS // 2)
    await ledger.assigned("urgent", priority=9)

    answer = await ledger.beat()

    assert [request_id for request_id, _ in answer.assigned] == ["urgent", "hurried", "patient"]


async def test_a_beat_of_a_substation_that_nobody_ever_took_is_not_answered(ledger):
    assert await ledger.beat(at="nowhere") is None


async def waiting_room(ledger):
    await ledger.accepted("first")
    await ledger.accepted("second")
    await ledger.accepted("departs-soon", wait_max_ms=SOON_MS // 2)
    await ledger.accepted("urgent", priority=9)
    await ledger.accepted("urgent-and-soon", priority=9, wait_max_ms=SOON_MS // 2)
    return ["urgent-and-soon", "urgent", "departs-soon", "first", "second"]


async def test_a_claimed_vehicle_leaves_in_as_much_time_as_the_databases_clock_says(ledger):
    now_ms = (await ledger.intake.accept([new_request("clock")]))[0].accepted_at_ms
    [stays] = await ledger.claimed("stays")
    [leaves] = await ledger.claimed("leaves", departs_at_ms=now_ms + 60_000)

    assert stays.departs_in_ms is None
    assert 0 < leaves.departs_in_ms <= 60_000

    answer = await ledger.beat()
    await ledger.take(registration("north"))
    resumed = await ledger.beat(epoch=2)
    for one in (answer, resumed):
        departs_in_ms = {row.request_id: row.departs_in_ms for row in one.charging}
        assert departs_in_ms["stays"] is None
        assert 0 < departs_in_ms["leaves"] <= leaves.departs_in_ms


async def test_a_vehicle_that_has_left_while_nobody_looked_left_in_the_past(ledger, path):
    now_ms = (await ledger.intake.accept([new_request("clock")]))[0].accepted_at_ms
    await ledger.claimed("r", departs_at_ms=now_ms + 60_000)
    let_the_vehicle_leave(path, "r")

    assert (await ledger.beat()).charging[0].departs_in_ms < 0


async def test_who_waits_stands_by_priority_then_deadline_then_arrival(ledger):
    order = await waiting_room(ledger)

    assert [one.request_id for one in await ledger.dispatch.waiting_first(100, 0, [])] == order
    assert [one.request_id for one in await ledger.dispatch.waiting_first(2, 0, [])] == order[:2]
    named = await ledger.dispatch.waiting([Hint(one, 0) for one in sorted(order)])
    assert [one.request_id for one in named] == order


async def test_of_one_deadline_the_earlier_arrival_stands_first(ledger):
    deadline_ms = (await ledger.intake.accept([new_request("clock")]))[0].accepted_at_ms + 1_000
    for one in ("z", "m", "a"):
        await ledger.accepted(one, departs_at_ms=deadline_ms)

    assert [one.request_id for one in await ledger.dispatch.waiting_first(3, 0, [])] == ["z", "m", "a"]


async def test_only_accepted_requests_of_that_attempt_wait(ledger, path):
    await ledger.accepted("waits", power_max_w=22_000, zone="west")
    await ledger.assigned("assigned")
    await ledger.claimed("charging")
    await ledger.ended("over")
    await ledger.accepted("too-late")
    let_the_wait_pass(path, "too-late")
    await ledger.assigned("back")
    await ledger.charging.decline([Hint("back", 1)], "north")
    everybody = ["waits", "assigned", "charging", "over", "too-late", "back", "nobody"]

    named = await ledger.dispatch.waiting([Hint(one, attempt) for one in everybody for attempt in (0, 1)])

    assert {(one.request_id, one.attempt, one.power_max_w, one.zone) for one in named} == {
        ("waits", 0, 22_000, "west"),
        ("back", 1, 11_000, None),
    }
    assert {one.request_id for one in await ledger.dispatch.waiting_first(100, 0, [])} == {"waits", "back"}


async def test_the_head_of_the_waiting_room_leaves_out_who_has_just_come(ledger):
    await ledger.accepted("r")

    assert await ledger.dispatch.waiting_first(100, 3_600_000, []) == []


async def test_who_waited_too_long_expires_once_wherever_it_waits(ledger, path):
    await ledger.accepted("waits", "patient")
    await ledger.assigned("assigned")
    await ledger.claimed("charging")
    await ledger.ended("over")
    for one in ("waits", "assigned", "charging", "over"):
        let_the_wait_pass(path, one)

    assert sorted(await ledger.sweeping.expire()) == ["assigned", "waits"]
    assert await ledger.sweeping.expire() == []

    assert {one: await ledger.status(one) for one in ("waits", "assigned", "patient", "charging", "over")} == {
        "waits": Status.EXPIRED,
        "assigned": Status.EXPIRED,
        "patient": Status.ACCEPTED,
        "charging": Status.CHARGING,
        "over": Status.COMPLETED,
    }
    assert (await ledger.history("waits"))[-1].reason == Reason.WAITED_TOO_LONG


async def test_a_request_without_any_wait_expires_at_once(ledger):
    await ledger.accepted("r", wait_max_ms=0)

    assert await ledger.dispatch.waiting([Hint("r", 0)]) == []
    assert await ledger.sweeping.expire() == ["r"]


async def unseen(ledger, *known):
    return {
        (one.request_id, one.attempt, one.substation, one.power_w, one.sign)
        for one in await ledger.dispatch.unseen(known)
    }


async def test_assigned_rows_are_unseen(ledger):
    await ledger.assigned("n", to="north", power_max_w=7_000)
    await ledger.assigned("s", to="south")
    await ledger.accepted("waits")

    assert await ledger.dispatch.unseen([]) == [
        Unseen("n", 1, "north", 7_000, 1),
        Unseen("s", 1, "south", 11_000, 1),
    ]


async def test_claims_after_the_reading_are_unseen_and_those_in_it_are_not(ledger):
    await ledger.claimed("c1", "c2", "c3")

    assert await unseen(ledger, Known("north", 1, 2, 0)) == {("c3", 1, "north", 11_000, 1)}
    assert await unseen(ledger, Known("north", 1, 3, 0)) == set()
    assert len(await unseen(ledger, Known("north", 1, 0, 0))) == 3


async def test_ends_after_the_reading_are_subtracted_and_those_in_it_are_not(ledger):
    await ledger.claimed("c1", "c2", "c3")
    await ledger.charging.end([ending("c1")])
    await ledger.charging.end([ending("c2")])

    assert await unseen(ledger, Known("north", 1, 3, 1)) == {("c2", 1, "north", 11_000, -1)}
    assert await unseen(ledger, Known("north", 1, 3, 2)) == set()


async def test_what_began_and_ended_after_the_reading_leaves_no_trace(ledger):
    await ledger.ended("quick")

    assert await unseen(ledger, Known("north", 1, 0, 0)) == set()


async def test_each_substation_is_measured_by_its_own_reading(ledger):
    await ledger.claimed("n1", "n2", at="north")
    await ledger.claimed("s1", "s2", at="south")

    assert await unseen(ledger, Known("north", 1, 1, 0), Known("south", 1, 0, 0)) == {
        ("n2", 1, "north", 11_000, 1),
        ("s1", 1, "south", 11_000, 1),
        ("s2", 1, "south", 11_000, 1),
    }


async def test_resumed_sessions_are_in_the_reading_and_count_neither_before_nor_after_the_takeover_is_seen(ledger):
    await ledger.claimed("a", "b")
    await ledger.take(registration("north"))
    await ledger.claimed("c", epoch=2)

    assert await unseen(ledger, Known("north", 1, 2, 0)) == {("c", 1, "north", 11_000, 1)}
    assert await unseen(ledger, Known("north", 2, 0, 0)) == {("c", 1, "north", 11_000, 1)}
    assert await unseen(ledger, Known("north", 2, 1, 0)) == set()


async def test_the_end_of_a_resumed_session_is_subtracted_from_a_reading_of_its_epoch(ledger):
    await ledger.claimed("a")
    await ledger.take(registration("north"))
    await ledger.charging.end([ending("a", epoch=2)])

    assert await unseen(ledger, Known("north", 2, 0, 0)) == {("a", 1, "north", 11_000, -1)}
    assert await unseen(ledger, Known("north", 2, 0, 1)) == set()


async def test_a_request_that_was_given_back_is_not_on_its_way(ledger):
    await ledger.assigned("r")
    await ledger.charging.decline([Hint("r", 1)], "north")

    assert await unseen(ledger, Known("north", 1, 0, 0)) == set()
