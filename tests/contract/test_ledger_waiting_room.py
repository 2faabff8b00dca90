"""The waiting room as the ledger keeps it: who is claimed first, positions, the outlook, and what is forgotten."""

import pytest
from harness.ledger import SOON_MS, Ledger, asked, changed, ending, let_the_wait_pass, new_request, registration

from services.ledger.records import Assignment, Place
from services.messages import Hint

PEOPLE = ("late", "hurried", "urgent", "early")
IN_ORDER = ["urgent", "hurried", "early", "late"]


async def accept_people(ledger, **changes):
    await ledger.accepted("early", **changes)
    await ledger.accepted("late", **changes)
    await ledger.accepted("hurried", wait_max_ms=SOON_MS // 2, **changes)
    await ledger.accepted("urgent", priority=9, **changes)


async def position(ledger, request_id):
    return (await ledger.intake.request(request_id)).position


async def outlook(ledger, *, most=100, within_ms=SOON_MS):
    return await ledger.intake.outlook(waiting_most=most, ends_most=100, ends_within_ms=within_ms)


async def test_the_ledger_claims_in_the_order_of_the_waiting_room_as_many_as_there_are_places(ledger):
    await accept_people(ledger)
    assert len(await ledger.dispatch.assign([Assignment(one, 0, "north") for one in PEOPLE])) == 4

    claims = await ledger.charging.claim([Hint(one, 1) for one in PEOPLE], "north", 1, 2)

    assert [(one.request_id, one.claim_number) for one in claims.claimed] == [("urgent", 1), ("hurried", 2)]
    assert [one.request_id for one in claims.held] == ["early", "late"]


async def test_the_ledger_counts_the_usable_connectors_itself(ledger):
    """Whoever asks does not know yet what a call without an answer has claimed."""
    await ledger.take(registration(connectors=4))
    await ledger.assigned(*PEOPLE)
    hints = [Hint(one, 1) for one in PEOPLE]

    for usable, claimed in ((0, 0), (2, 2), (2, 2), (3, 3), (9, 4), (1, 4)):
        claims = await ledger.charging.claim(hints, "north", 2, 4, usable=usable)
        assert len(claims.claimed) == claimed


async def test_asking_again_claims_no_more_than_there_are_connectors(ledger):
    await ledger.take(registration("north", connectors=2))
    await ledger.assigned("a", "b", "c", "d")
    hints = [Hint(one, 1) for one in "abcd"]
    first = await ledger.charging.claim(hints, "north", 2, 2)

    again = await ledger.charging.claim(hints, "north", 2, 2)  # as if the first answer had been lost

    assert again == first
    assert [one.request_id for one in again.held] == ["c", "d"]


async def test_who_is_not_ours_any_more_is_neither_claimed_nor_held(ledger, path):
    await ledger.assigned("cancelled", "expired", "elsewhere", "ours")
    await ledger.intake.withdraw("cancelled")
    let_the_wait_pass(path, "expired")
    await ledger.dispatch.give_back([Hint("elsewhere", 1)], "north", "declined")

    claims = await ledger.charging.claim(
        [Hint(one, 1) for one in ("cancelled", "expired", "elsewhere", "ours")], "north", 1, 0
    )

    assert (claims.claimed, claims.held) == ((), (Hint("ours", 1),))


async def test_positions_follow_priority_deadline_and_arrival(ledger):
    await accept_people(ledger)

    assert [await position(ledger, one) for one in IN_ORDER] == [1, 2, 3, 4]
    await ledger.dispatch.assign([Assignment("hurried", 0, "north")])
    assert [await position(ledger, one) for one in IN_ORDER] == [1, None, 2, 3]


async def test_a_position_counts_those_who_could_take_the_same_place(ledger):
    await ledger.accepted("hills-1", "hills-2", zone="hills")
    await ledger.accepted("sea-1", zone="sea")
    await ledger.accepted("any")
    await ledger.accepted("sea-2", zone="sea")

    places = [await position(ledger, one) for one in ("hills-1", "hills-2", "sea-1", "any", "sea-2")]

    assert places == [1, 2, 1, 4, 3]


async def test_the_outlook_has_everybody_once_and_who_waits_in_order(ledger):
    await ledger.take(registration("north", zone="hills", connectors=7))
    await ledger.claimed("charging", epoch=2)
    await ledger.assigned("in-bay")
    await accept_people(ledger)

    seen = await outlook(ledger, most=3)

    assert Place("north", "hills", 7) in seen.places
    assert [(one.request_id, one.substation) for one in seen.charging] == [("charging", "north")]
    assert [(one.request_id, one.substation) for one in seen.in_bays] == [("in-bay", "north")]
    assert [one.request_id for one in seen.waiting] == IN_ORDER[:3]
    assert seen.waiting[0].owed_j == 36_000_000
    assert 0 < seen.waiting[1].wait_left_ms <= SOON_MS // 2


async def test_the_outlook_has_recent_sessions_with_their_length(ledger, path):
    await ledger.claimed("r")
    changed(path, "UPDATE request SET claimed_at_ms = claimed_at_ms - 60000")
    await ledger.charging.end([ending("r", delivered_j=5_000)])
    await ledger.accepted("gone")
    await ledger.intake.withdraw("gone")

    [one] = (await outlook(ledger)).recent_ends

    assert (one.delivered_j, one.power_max_w) == (5_000, 11_000)
    assert 60_000 <= one.took_ms < 120_000
    changed(path, "UPDATE request SET changed_at_ms = changed_at_ms - ?", [2 * SOON_MS])
    assert (await outlook(ledger)).recent_ends == ()


async def test_what_ended_long_ago_is_forgotten_with_its_history_and_key(ledger, path):
    await ledger.accepted("open")
    await ledger.accepted("old", idempotency_key="k", body_hash="h")
    await ledger.accepted("new")
    await ledger.intake.withdraw("old")
    await ledger.intake.withdraw("new")
    changed(path, "UPDATE request SET changed_at_ms = changed_at_ms - 5000 WHERE id IN ('old', 'open')")

    assert await ledger.sweeping.forget(4_000, 100) == 1

    assert await ledger.intake.request("old") is None
    assert [await ledger.status(one) for one in ("open", "new")] == ["accepted", "cancelled"]
    assert asked(path, "SELECT number FROM transition WHERE request_id = 'old'") == []
    [again] = await ledger.intake.accept([new_request("again", idempotency_key="k", body_hash="h")])
    assert again.request_id == "again"


@pytest.mark.parametrize("most", [1, 2])
async def test_only_a_few_are_forgotten_at_once(ledger: Ledger, most):
    await ledger.accepted("a", "b", "c")
    for one in "abc":
        await ledger.intake.withdraw(one)

    assert await ledger.sweeping.forget(0, most) == most
