"""Idempotency keys and the list of requests, asked of the real ledger."""

import asyncio
import uuid
from dataclasses import replace

import pytest
from harness.ledger import MANY, ending, new_request

from services.ledger.states import Reason, Status
from services.messages import Hint


def keyed(request_id, key, body_hash="h"):
    return new_request(request_id, idempotency_key=key, body_hash=body_hash)


async def test_one_key_is_one_request_whoever_asks_at_the_same_time(ledger, rival):
    answers = await asyncio.gather(
        *(one.intake.accept([keyed(str(uuid.uuid4()), "k")]) for _ in range(25) for one in (ledger, rival))
    )

    accepted = [one for answer in answers for one in answer]
    assert len(accepted) == 50
    assert len({(one.request_id, one.accepted_at_ms, one.wait_until_ms, one.body_hash) for one in accepted}) == 1
    assert len({one.asked for one in accepted}) == 50
    assert (await ledger.intake.counts())[Status.ACCEPTED] == 1


async def test_one_key_within_one_commit_is_one_request(ledger):
    first, second = await ledger.intake.accept([keyed("a", "k"), keyed("b", "k")])

    assert {first.asked, second.asked} == {"a", "b"}
    assert first.request_id == second.request_id


async def test_a_used_key_answers_with_the_hash_of_the_first_body(ledger):
    await ledger.intake.accept([keyed("a", "k", "first")])

    [again] = await ledger.intake.accept([keyed("b", "k", "second")])

    assert (again.asked, again.request_id, again.body_hash) == ("b", "a", "first")
    assert await ledger.intake.request("b") is None


async def test_requests_without_a_key_or_with_different_ones_are_different(ledger):
    await ledger.intake.accept([new_request("a"), new_request("b"), keyed("c", "k"), keyed("d", "l")])

    assert (await ledger.intake.counts())[Status.ACCEPTED] == 4


async def listed(ledger, *, before=2**63 - 1, most=500, status=None, substation=None):
    return await ledger.intake.listed(before=before, most=most, status=status, substation=substation)


async def test_the_list_shows_every_request_once_newest_first_page_by_page(ledger):
    for one in MANY:
        await ledger.accepted(one)

    seen, before = [], 2**63 - 1
    while page := await listed(ledger, before=before, most=7):
        seen += [line.request_id for line in page]
        before = page[-1].arrival

    assert seen == MANY[::-1]


async def test_the_list_can_be_of_one_state_and_of_one_substation_also_after_the_end(ledger):
    await ledger.accepted("waits")
    await ledger.claimed("charges", at="south")
    await ledger.ended("ended", at="north")

    assert [line.request_id for line in await listed(ledger, status=Status.CHARGING)] == ["charges"]
    assert [line.request_id for line in await listed(ledger, substation="north")] == ["ended"]
    assert await listed(ledger, status=Status.CHARGING, substation="north") == []
    [line] = await listed(ledger, substation="north")
    assert (line.status, line.attempt, line.energy_delivered_j) == (Status.COMPLETED, 1, 36_000_000)


@pytest.mark.parametrize("state", ["accepted", "assigned"])
async def test_a_waiting_request_that_is_withdrawn_is_cancelled_and_never_charges(ledger, state):
    await getattr(ledger, state)("r")

    assert await ledger.intake.withdraw("r") is Status.CANCELLED
    assert await ledger.intake.withdraw("r") is Status.CANCELLED

    assert await ledger.claim([Hint("r", 1)], "north", 1) == []
    assert await ledger.dispatch.waiting_first(10, 0, []) == []
    last = (await ledger.history("r"))[-1]
    assert (last.status, last.reason) == (Status.CANCELLED, Reason.REMOTE)


async def test_a_charging_request_that_is_withdrawn_is_told_to_its_substation_until_it_has_stopped(ledger):
    await ledger.claimed("r", "other")

    assert await ledger.intake.withdraw("r") is Status.CHARGING
    for _ in range(2):
        answer = await ledger.beat()
        assert {one.request_id: one.stop_asked for one in answer.charging} == {"r": True, "other": False}
    stopped = ending("r", delivered_j=1_000)
    await ledger.charging.end([replace(stopped, status=Status.STOPPED, reason=Reason.REMOTE)])

    assert [one.request_id for one in (await ledger.beat()).charging] == ["other"]
    assert await ledger.intake.withdraw("r") is Status.STOPPED
    assert (await ledger.intake.request("r")).energy_delivered_j == 1_000


async def test_what_has_ended_stays_as_it_is_and_a_stranger_is_none(ledger):
    await ledger.ended("r")
    before = await ledger.intake.request("r")

    assert await ledger.intake.withdraw("r") is Status.COMPLETED
    assert await ledger.intake.request("r") == before
    assert await ledger.intake.withdraw("nobody") is None


async def test_of_a_claim_and_a_withdrawal_at_the_same_time_both_answers_agree(ledger, rival):
    await ledger.assigned(*MANY)

    answers = await asyncio.gather(
        *(one for request_id in MANY for one in (
            ledger.claim([Hint(request_id, 1)], "north", 1), rival.intake.withdraw(request_id)
        ))
    )  # fmt: skip

    for claims, status in zip(answers[::2], answers[1::2], strict=True):
        assert status is (Status.CHARGING if claims else Status.CANCELLED)
