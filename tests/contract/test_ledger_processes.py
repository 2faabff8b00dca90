"""Several processes on one ledger: who wins, how claims and ends are numbered, what an old epoch may do."""

import asyncio
import contextlib
import uuid
from dataclasses import replace

import pytest
from harness.ledger import (
    MANY,
    Ledger,
    all_histories,
    ending,
    opened,
    progress,
    registration,
)

from services.errors import LedgerUnavailable
from services.ledger import statements
from services.ledger.committer import Operation
from services.ledger.records import Assignment, RegisteredSubstation
from services.ledger.states import Reason, Status, faults
from services.messages import Hint


async def test_of_concurrent_assignments_of_one_request_exactly_one_wins(ledger, rival):
    await ledger.accepted(*MANY)

    answers = await asyncio.gather(
        *(
            one.dispatch.assign([Assignment(request_id, 0, to)])
            for request_id in MANY
            for one, to in ((ledger, "north"), (rival, "south"), (ledger, "north"), (rival, "south"))
        )
    )

    winners = [request_id for answer in answers for request_id in answer]
    assert sorted(winners) == MANY
    for request_id in MANY:
        assert [one.status for one in await ledger.history(request_id)] == ["accepted", "assigned"]


async def test_of_concurrent_claims_of_one_hint_exactly_one_wins(ledger, rival):
    await ledger.assigned(*MANY)

    answers = await asyncio.gather(
        *(one.claim([Hint(request_id, 1)], "north", 1) for request_id in MANY for one in (ledger, rival) * 2)
    )

    claims = {(claim.request_id, claim.claim_number) for answer in answers for claim in answer}
    assert sorted(request_id for request_id, _ in claims) == MANY
    assert sorted(number for _, number in claims) == list(range(1, len(MANY) + 1))


async def test_of_a_claim_and_a_taking_back_at_the_same_time_exactly_one_wins(ledger, rival):
    await ledger.assigned(*MANY)

    answers = await asyncio.gather(
        *(
            outcome
            for request_id in MANY
            for outcome in (
                ledger.claim([Hint(request_id, 1)], "north", 1),
                rival.dispatch.give_back([Hint(request_id, 1)], "north", Reason.UNROUTABLE),
            )
        )
    )

    claimed = {claim.request_id for answer in answers[::2] for claim in answer}
    taken_back = {request_id for answer in answers[1::2] for request_id in answer}
    assert claimed | taken_back == set(MANY)
    assert not claimed & taken_back


async def test_of_concurrent_ends_exactly_one_wins_and_the_numbers_have_no_gap(ledger, rival):
    await ledger.claimed(*MANY)

    answers = await asyncio.gather(
        *(one.charging.end([ending(request_id)]) for request_id in MANY for one in (ledger, rival))
    )

    ends = {end for answer in answers for end in answer.items()}
    assert sorted(request_id for request_id, _ in ends) == MANY
    assert sorted(number for _, number in ends) == list(range(1, len(MANY) + 1))


async def test_a_transaction_that_fails_leaves_nothing_of_what_it_had_written(ledger):
    def write_and_fail(transaction, rows):
        transaction.execute(statements.AGREE, [["half", "written"]])
        raise RuntimeError("a bug")

    with pytest.raises(LedgerUnavailable, match="RuntimeError"):
        await ledger.connection.write(Operation("half", "id", write_and_fail), [{"id": "x"}])

    assert await ledger.connection.read(lambda it: it.execute(statements.AGREED, [["half", ""]])) == []
    await ledger.accepted("r")


async def test_two_processes_that_make_the_same_ledger_at_once_share_it(where):
    async with contextlib.AsyncExitStack() as stack:
        connections = await asyncio.gather(*(stack.enter_async_context(opened(where)) for _ in range(4)))
        await Ledger(connections[0]).accepted("r")

        assert [await Ledger(one).status("r") for one in connections] == [Status.ACCEPTED] * 4


async def test_claims_and_ends_are_numbered_without_gaps_for_each_substation(ledger):
    north = await ledger.claimed("n1", "n2", "n3", at="north")
    south = await ledger.claimed("s1", "s2", at="south")
    north += await ledger.claimed("n4", at="north")

    assert [one.claim_number for one in north] == [1, 2, 3, 4]
    assert [one.claim_number for one in south] == [1, 2]

    ends = await ledger.charging.end([ending("n3"), ending("s2", "south"), ending("n1")])
    ends |= await ledger.charging.end([ending("n2"), ending("s1", "south")])
    assert sorted(ends[one] for one in ("n1", "n2", "n3")) == [1, 2, 3]
    assert (ends["n2"], ends["s2"], ends["s1"]) == (3, 1, 2)


async def test_claims_of_two_substations_that_share_a_transaction_are_still_numbered_apart(ledger):
    north, south = MANY[:20], MANY[20:]
    await ledger.assigned(*north, to="north")
    await ledger.assigned(*south, to="south")

    answers = await asyncio.gather(
        *(
            ledger.claim([Hint(request_id, 1)], at, 1)
            for pair in zip(north, south, strict=True)
            for request_id, at in zip(pair, ("north", "south"), strict=True)
        )
    )

    claims = [claim for answer in answers for claim in answer]
    for at in ("north", "south"):
        assert sorted(one.claim_number for one in claims if one.substation == at) == list(range(1, 21))


async def test_a_refused_claim_or_end_takes_no_number(ledger):
    await ledger.assigned("a", "b", "c")
    await ledger.claim([Hint("a", 1), Hint("b", 9), Hint("nobody", 1), Hint("c", 1)], "north", 1)

    (late,) = await ledger.claim([Hint("b", 1)], "north", 1)
    assert late.claim_number == 3

    await ledger.charging.end([ending("a"), ending("nobody"), ending("b", attempt=4)])
    assert await ledger.charging.end([ending("c")]) == {"c": 2}


async def test_claims_are_numbered_and_answered_in_order_of_arrival(ledger):
    await ledger.assigned("first", "second", "third")

    claims = await ledger.claim([Hint(one, 1) for one in ("third", "first", "second")], "north", 1)

    assert [(one.request_id, one.claim_number) for one in claims] == [("first", 1), ("second", 2), ("third", 3)]


async def test_taking_a_lease_begins_an_epoch_and_takes_the_charging_rows_along(ledger):
    await ledger.claimed("a", "b")
    await ledger.assigned("still-assigned")
    await ledger.claimed("elsewhere", at="south")
    await ledger.ended("over")
    await ledger.beat(progress("a", 7_000))

    assert await ledger.take(registration("north")) == {"north": 2}

    answer = await ledger.beat(epoch=2)
    assert [(one.request_id, one.epoch, one.claim_number, one.energy_delivered_j) for one in answer.charging] == [
        ("a", 2, -1, 7_000),
        ("b", 2, 0, 0),
    ]
    assert (await ledger.history("a"))[-1] == replace(
        (await ledger.history("a"))[-1], status=Status.CHARGING, epoch=2, reason=Reason.RESUMED
    )
    assert await ledger.status("still-assigned") == Status.ASSIGNED
    assert (await ledger.history("elsewhere"))[-1].epoch == 1


async def test_numbers_begin_anew_with_an_epoch(ledger):
    await ledger.claimed("a", "b")
    await ledger.charging.end([ending("a")])
    await ledger.take(registration("north"))

    (claim,) = await ledger.claimed("c", epoch=2)

    assert claim.claim_number == 1
    assert await ledger.charging.end([ending("b", epoch=2), ending("c", epoch=2)]) == {"b": 1, "c": 2}


async def test_a_process_of_an_old_epoch_changes_nothing(ledger, rival):
    await ledger.claimed("a")
    await ledger.assigned("b")
    await rival.take(registration("north"))

    assert await ledger.claim([Hint("b", 1)], "north", 1) == []
    assert await ledger.charging.end([ending("a", epoch=1)]) == {}
    assert await ledger.beat(progress("a", 99)) is None

    record = await ledger.intake.request("a")
    assert (record.status, record.energy_delivered_j) == (Status.CHARGING, 0)


async def test_taking_several_answers_each_with_its_own_epoch(ledger):
    await ledger.claimed("n", at="north")
    await ledger.claimed("s", at="south")

    epochs = await ledger.take(registration("south"), registration("new"), registration("north"))

    assert epochs == {"south": 2, "new": 1, "north": 2}
    for request_id, at in (("n", "north"), ("s", "south")):
        assert [one.request_id for one in (await ledger.beat(at=at, epoch=2)).charging] == [request_id]


async def test_the_registry_has_what_was_registered_last(ledger):
    await ledger.take(registration("south", zone="west", metrics_url="http://127.0.0.1:2"))

    assert await ledger.dispatch.registry() == [
        RegisteredSubstation("north", None, 1, "http://127.0.0.1:1", has_lease=True),
        RegisteredSubstation("south", "west", 2, "http://127.0.0.1:2", has_lease=True),
    ]


async def test_a_storm_of_late_doubled_and_wrong_calls_leaves_sound_histories(ledger, rival, path):
    ids = [uuid.UUID(int=number).hex for number in range(25)]
    await ledger.accepted(*ids)
    for attempt in (0, 1, 2):
        await asyncio.gather(
            *(
                work
                for place, request_id in enumerate(ids)
                for one, to in ((ledger, "north"), (rival, "south"))
                for work in (
                    one.dispatch.assign([Assignment(request_id, attempt, to)]),
                    one.claim([Hint(request_id, attempt + 1)], to, 1),
                    one.dispatch.give_back([Hint(request_id, attempt + 1)], to, Reason.UNROUTABLE),
                    one.charging.end([ending(request_id, to, attempt=attempt + 1)] if place % 2 else []),
                    one.take(*([registration(to)] if place == attempt == 2 else [])),
                )
            )
        )

    histories, _ = all_histories(path)
    assert histories.keys() == set(ids)
    assert all(faults(history) == [] for history in histories.values())
    assert any(len(history) > 2 for history in histories.values())
