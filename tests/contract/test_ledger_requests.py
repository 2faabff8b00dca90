"""A request's way through the ledger, and every compare-and-set that guards it."""

from dataclasses import replace

import pytest
from harness.ledger import (
    SOON_MS,
    ending,
    let_the_wait_pass,
    new_request,
    progress,
)

from services.ledger.records import Assignment, Known
from services.ledger.states import Reason, Status, ended_once
from services.messages import Hint


async def test_a_request_goes_all_the_way_and_its_history_tells_it(ledger):
    (accepted,) = await ledger.intake.accept([new_request("r", priority=3, zone="west", depart_by_ms=99)])
    assert accepted.request_id == "r"
    assert accepted.wait_until_ms == accepted.accepted_at_ms + SOON_MS
    assert await ledger.dispatch.assign([Assignment("r", 0, "north", {"policy": "least-utilisation"})]) == {"r"}
    (claim,) = await ledger.claim([Hint("r", 1)], "north", 1)
    await ledger.beat(progress("r", 1_000))
    assert await ledger.charging.end([ending("r")]) == {"r": 1}

    record = await ledger.intake.request("r")

    assert (claim.claim_number, claim.power_max_w, claim.energy_requested_j) == (1, 11_000, 36_000_000)
    assert (record.status, record.substation, record.attempt) == (Status.COMPLETED, "north", 1)
    assert (record.vehicle_id, record.priority, record.zone, record.depart_by_ms) == ("EV-1", 3, "west", 99)
    assert (record.energy_requested_j, record.energy_delivered_j) == (36_000_000, 36_000_000)
    assert record.decision == {"policy": "least-utilisation"}
    assert [(one.status, one.substation, one.attempt, one.epoch, one.reason) for one in record.history] == [
        ("accepted", None, 0, None, "submitted"),
        ("assigned", "north", 1, None, "dispatched"),
        ("charging", "north", 1, 1, "claimed"),
        ("completed", "north", 1, 1, "EnergyLimitReached"),
    ]
    assert ended_once(record.history)


async def test_a_declined_request_goes_back_and_to_somebody_else(ledger):
    await ledger.assigned("r", to="north")
    assert await ledger.charging.decline([Hint("r", 1)], "north") == {"r"}
    assert (await ledger.intake.request("r")).substation is None
    assert await ledger.dispatch.assign([Assignment("r", 1, "south")]) == {"r"}
    assert [one.attempt for one in await ledger.claim([Hint("r", 2)], "south", 1)] == [2]

    assert [(one.status, one.substation, one.attempt, one.reason) for one in await ledger.history("r")] == [
        ("accepted", None, 0, "submitted"),
        ("assigned", "north", 1, "dispatched"),
        ("accepted", None, 1, "declined"),
        ("assigned", "south", 2, "dispatched"),
        ("charging", "south", 2, "claimed"),
    ]


async def test_a_request_that_is_not_there_is_none(ledger):
    assert await ledger.intake.request("nobody") is None
    assert await ledger.intake.request("") is None


async def test_the_wait_ends_at_the_departure_where_that_comes_first(ledger):
    now_ms = (await ledger.intake.accept([new_request("clock")]))[0].accepted_at_ms
    early, late = now_ms + 60_000, now_ms + 10 * SOON_MS
    accepted = await ledger.intake.accept(
        [new_request("early", departs_at_ms=early), new_request("late", departs_at_ms=late)]
    )
    by_id = {one.request_id: one for one in accepted}

    assert by_id["early"].wait_until_ms == early
    assert by_id["late"].wait_until_ms == by_id["late"].accepted_at_ms + SOON_MS


async def test_counts_name_every_state(ledger):
    await ledger.accepted("a", "b")
    await ledger.claimed("c")
    await ledger.ended("d", at="south")

    assert await ledger.intake.counts() == {
        **dict.fromkeys(Status, 0),
        Status.ACCEPTED: 2,
        Status.CHARGING: 1,
        Status.COMPLETED: 1,
    }


@pytest.mark.parametrize("text", ["EV 'quoted'; DROP TABLE request", "ü€🚗", "[]", "null", "1", "a\\u0000b", "\u2028"])
async def test_text_comes_out_as_it_went_in(ledger, text):
    await ledger.intake.accept([new_request(text, vehicle_id=text, zone=text)])
    await ledger.dispatch.assign([Assignment(text, 0, "north", {"why": text})])

    record = await ledger.intake.request(text)

    assert (record.request_id, record.vehicle_id, record.zone, record.decision) == (text, text, text, {"why": text})


async def test_numbers_keep_every_digit(ledger):
    await ledger.intake.accept([new_request("r", energy_requested_j=2**53 + 1, depart_by_ms=253_370_764_799_999)])

    record = await ledger.intake.request("r")

    assert (record.energy_requested_j, record.depart_by_ms) == (2**53 + 1, 253_370_764_799_999)


async def test_what_is_committed_is_there_for_another_process_at_once(ledger, rival):
    await ledger.accepted("r")

    assert await rival.status("r") == Status.ACCEPTED


async def test_assigning_needs_an_accepted_request_at_that_attempt(ledger):
    await ledger.accepted("wrong-attempt")
    await ledger.assigned("assigned")
    await ledger.claimed("charging")
    await ledger.ended("completed")
    attempts = [
        Assignment("wrong-attempt", 1, "south"),
        Assignment("assigned", 0, "south"),
        Assignment("charging", 0, "south"),
        Assignment("completed", 0, "south"),
        Assignment("nobody", 0, "south"),
    ]
    assert await ledger.dispatch.assign(attempts) == set()
    assert await ledger.dispatch.assign([replace(one, attempt=1) for one in attempts]) == set()

    assert await ledger.status("wrong-attempt") == Status.ACCEPTED
    assert (await ledger.intake.request("assigned")).substation == "north"


async def test_assigning_some_that_changed_and_some_that_did_not_tells_them_apart(ledger):
    await ledger.accepted("a", "b", "c")
    await ledger.dispatch.assign([Assignment("b", 0, "south")])

    assert await ledger.dispatch.assign([Assignment(one, 0, "north") for one in "abc"]) == {"a", "c"}
    assert (await ledger.intake.request("b")).substation == "south"


@pytest.mark.parametrize(
    ("attempt", "substation", "epoch"),
    [(0, "north", 1), (2, "north", 1), (1, "south", 1), (1, "nowhere", 1), (1, "north", 0), (1, "north", 2)],
)
async def test_claiming_needs_the_right_attempt_substation_and_epoch(ledger, attempt, substation, epoch):
    await ledger.assigned("r", to="north")

    assert await ledger.claim([Hint("r", attempt)], substation, epoch) == []

    assert await ledger.status("r") == Status.ASSIGNED
    assert (await ledger.claim([Hint("r", 1)], "north", 1))[0].claim_number == 1


async def test_claiming_needs_an_assigned_request(ledger):
    await ledger.accepted("accepted")
    await ledger.ended("completed")

    hints = [Hint(one, attempt) for one in ("accepted", "completed", "nobody") for attempt in (0, 1)]

    assert await ledger.claim(hints, "north", 1) == []


async def test_a_request_that_was_asked_to_stop_is_not_claimed(ledger, execute):
    await ledger.assigned("r")
    execute("UPDATE request SET stop_asked = 1 WHERE id = 'r'")

    assert await ledger.claim([Hint("r", 1)], "north", 1) == []

    assert await ledger.status("r") == Status.ASSIGNED


async def test_a_claim_whose_answer_was_lost_is_answered_again_and_made_once(ledger):
    await ledger.assigned("r", "s")
    [first] = await ledger.claim([Hint("r", 1)], "north", 1)

    again = await ledger.claim([Hint("r", 1), Hint("s", 1)], "north", 1)

    assert [(one.request_id, one.claim_number) for one in again] == [("r", first.claim_number), ("s", 2)]
    assert await ledger.claim([Hint("r", 1)], "north", 2) == []
    assert await ledger.claim([Hint("r", 1)], "east", 1) == []


async def test_an_end_whose_answer_was_lost_is_answered_again_and_made_once(ledger):
    await ledger.claimed("r", "s")
    first = await ledger.charging.end([ending("r")])

    again = await ledger.charging.end([ending("r"), ending("s")])

    assert again == {"r": first["r"], "s": 2}
    assert await ledger.dispatch.unseen([Known("north", 1, 2, 2)]) == []


async def test_the_head_of_the_waiting_room_can_be_read_past_full_zones(ledger):
    await ledger.accepted("a", zone="full")
    await ledger.accepted("b")
    await ledger.accepted("c", zone="open")

    assert [one.request_id for one in await ledger.dispatch.waiting_first(2, 0, [])] == ["a", "b"]
    assert [one.request_id for one in await ledger.dispatch.waiting_first(2, 0, ["full"])] == ["b", "c"]


async def test_nothing_is_assigned_or_claimed_after_its_wait_has_passed(ledger, path):
    await ledger.accepted("waits")
    await ledger.assigned("assigned")
    for one in ("waits", "assigned"):
        let_the_wait_pass(path, one)

    assert await ledger.dispatch.assign([Assignment("waits", 0, "north")]) == set()
    assert await ledger.claim([Hint("assigned", 1)], "north", 1) == []


@pytest.mark.parametrize(("attempt", "substation"), [(0, "north"), (2, "north"), (1, "south"), (1, "nowhere")])
async def test_giving_back_needs_the_right_attempt_and_substation(ledger, attempt, substation):
    await ledger.assigned("r", to="north")
    hint = [Hint("r", attempt)]

    assert await ledger.dispatch.give_back(hint, substation, Reason.UNROUTABLE) == set()
    assert await ledger.charging.decline(hint, substation) == set()
    assert await ledger.status("r") == Status.ASSIGNED


async def test_giving_back_takes_only_what_is_assigned_and_tells_the_reason(ledger):
    await ledger.assigned("assigned")
    await ledger.claimed("charging")
    await ledger.ended("completed")
    hints = [Hint(one, 1) for one in ("assigned", "charging", "completed", "nobody")]

    assert await ledger.dispatch.give_back(hints, "north", Reason.UNROUTABLE) == {"assigned"}
    assert (await ledger.history("assigned"))[-1].reason == Reason.UNROUTABLE
    assert await ledger.dispatch.give_back(hints, "north", Reason.UNROUTABLE) == set()


@pytest.mark.parametrize(
    "wrong",
    [ending("r", attempt=2), ending("r", attempt=0), ending("r", "south"), ending("r", epoch=2), ending("r", epoch=0)],
)
async def test_ending_needs_the_right_attempt_substation_and_epoch(ledger, wrong):
    await ledger.claimed("r")

    assert await ledger.charging.end([wrong]) == {}

    assert await ledger.status("r") == Status.CHARGING
    assert await ledger.charging.end([ending("r")]) == {"r": 1}


async def test_ending_needs_a_charging_request_and_happens_once(ledger):
    await ledger.accepted("accepted")
    await ledger.assigned("assigned")

    assert await ledger.charging.end([ending(one) for one in ("accepted", "assigned", "nobody")]) == {}


async def test_an_end_never_takes_energy_back_that_was_told_before(ledger):
    await ledger.claimed("r")
    await ledger.beat(progress("r", 5_000))

    await ledger.charging.end([ending("r", delivered_j=4_000)])

    assert (await ledger.intake.request("r")).energy_delivered_j == 5_000


async def test_accepting_the_same_id_again_changes_nothing(ledger):
    await ledger.assigned("r")

    [again] = await ledger.intake.accept([new_request("r", vehicle_id="EV-2")])
    assert (again.asked, again.request_id) == ("r", "r")

    record = await ledger.intake.request("r")
    assert (record.vehicle_id, record.status, len(record.history)) == ("EV-1", Status.ASSIGNED, 2)
