"""What the ledger promises to gateways, balancers and substations, asked of the real one."""

import asyncio
import collections
import contextlib
import re
import shutil
import sqlite3
import uuid
from dataclasses import replace

import pytest

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger import statements
from services.ledger.charging import LedgerCharging
from services.ledger.connection import open_ledger
from services.ledger.dispatch import LedgerDispatch
from services.ledger.intake import LedgerIntake
from services.ledger.records import (
    Assignment,
    Ending,
    Known,
    NewRequest,
    Progress,
    RegisteredSubstation,
    Registration,
    Unseen,
)
from services.ledger.sqlite import DIALECT
from services.ledger.states import Reason, Status, Transition, ended_once, faults
from services.messages import Hint

SOON_MS = 600_000


class Ledger:
    """One process's three views of a ledger, and short ways to bring requests into a state."""

    def __init__(self, connection):
        self.connection = connection
        self.intake = LedgerIntake(connection)
        self.dispatch = LedgerDispatch(connection)
        self.charging = LedgerCharging(connection)

    async def accepted(self, *request_ids, **changes):
        await self.intake.accept([new_request(one, **changes) for one in request_ids])

    async def assigned(self, *request_ids, to="north", **changes):
        await self.accepted(*request_ids, **changes)
        assert await self.dispatch.assign([Assignment(one, 0, to) for one in request_ids]) == set(request_ids)

    async def claimed(self, *request_ids, at="north", epoch=1, **changes):
        await self.assigned(*request_ids, to=at, **changes)
        claims = await self.charging.claim([Hint(one, 1) for one in request_ids], at, epoch)
        assert len(claims) == len(request_ids)
        return claims

    async def ended(self, *request_ids, at="north", epoch=1):
        await self.claimed(*request_ids, at=at, epoch=epoch)
        return await self.charging.end([ending(one, at, epoch) for one in request_ids])

    async def status(self, request_id):
        return (await self.intake.request(request_id)).status

    async def history(self, request_id):
        return (await self.intake.request(request_id)).history


def new_request(request_id, **changes):
    kept = NewRequest(
        request_id=request_id,
        vehicle_id="EV-1",
        energy_requested_j=36_000_000,
        power_max_w=11_000,
        priority=0,
        zone=None,
        depart_by_ms=None,
        wait_deadline_ms=None,
        wait_max_ms=SOON_MS,
    )
    return replace(kept, **changes)


def ending(request_id, at="north", epoch=1, *, attempt=1, delivered_j=36_000_000):
    return Ending(request_id, attempt, at, epoch, Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED, delivered_j)


def registration(substation="north", **changes):
    return replace(Registration(substation, None, 380_000, 304_000, 40, "http://127.0.0.1:1"), **changes)


def opened(path, *, speed=60.0, shared=False):
    return open_ledger(
        f"sqlite:///{path}", shared=shared, speed=speed, startup_timeout_s=5, observe_commit_s=lambda _seconds: None
    )


def all_histories(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "SELECT request_id, at_ms, status, substation, attempt, epoch, reason FROM transition ORDER BY number"
        ).fetchall()
        last = dict(database.execute("SELECT id, status FROM request").fetchall())
    histories = collections.defaultdict(list)
    for request_id, at_ms, status, substation, attempt, epoch, reason in rows:
        histories[request_id].append(Transition(at_ms, Status(status), substation, attempt, epoch, reason))
    return histories, last


@pytest.fixture
def path(tmp_path):
    """Where the ledger lies; whatever a test did to it, its histories must be sound afterwards."""
    where = tmp_path / "ledger.sqlite"
    yield where
    histories, last = all_histories(where)
    assert histories.keys() == last.keys()
    for request_id, history in histories.items():
        assert faults(history) == [], request_id
        assert history[-1].status == last[request_id]
        assert {one.reason for one in history} <= set(Reason)
        assert [one.at_ms for one in history] == sorted(one.at_ms for one in history)


@pytest.fixture
async def ledger(path):
    async with opened(path) as connection:
        one = Ledger(connection)
        await one.charging.register([registration("north"), registration("south")])
        yield one


@pytest.fixture
async def rival(path, ledger):
    """Another process on the same ledger."""
    async with opened(path) as connection:
        yield Ledger(connection)


def let_the_wait_pass(path, request_id):
    """As if the request's `wait_until` had been reached."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE request SET wait_until_ms = changed_at_ms - 1 WHERE id = ?", [request_id])


# --- the whole way ---------------------------------------------------------------------------------------------


async def test_a_request_goes_all_the_way_and_its_history_tells_it(ledger):
    (accepted,) = await ledger.intake.accept([new_request("r", priority=3, zone="west", depart_by_ms=99)])
    assert accepted.request_id == "r"
    assert accepted.wait_until_ms == accepted.accepted_at_ms + SOON_MS
    assert await ledger.dispatch.assign([Assignment("r", 0, "north", {"policy": "least-utilisation"})]) == {"r"}
    (claim,) = await ledger.charging.claim([Hint("r", 1)], "north", 1)
    await ledger.charging.heartbeat({"north": 1}, [Progress("r", 1, "north", 1, 1_000)], 0)
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
    assert [one.attempt for one in await ledger.charging.claim([Hint("r", 2)], "south", 1)] == [2]

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
        [new_request("early", wait_deadline_ms=early), new_request("late", wait_deadline_ms=late)]
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


# --- compare and set -------------------------------------------------------------------------------------------


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

    assert await ledger.charging.claim([Hint("r", attempt)], substation, epoch) == []

    assert await ledger.status("r") == Status.ASSIGNED
    assert (await ledger.charging.claim([Hint("r", 1)], "north", 1))[0].claim_number == 1


async def test_claiming_needs_an_assigned_request(ledger):
    await ledger.accepted("accepted")
    await ledger.ended("completed")

    hints = [Hint(one, attempt) for one in ("accepted", "completed", "nobody") for attempt in (0, 1)]

    assert await ledger.charging.claim(hints, "north", 1) == []


async def test_a_claim_whose_answer_was_lost_is_answered_again_and_made_once(ledger):
    await ledger.assigned("r", "s")
    [first] = await ledger.charging.claim([Hint("r", 1)], "north", 1)

    again = await ledger.charging.claim([Hint("r", 1), Hint("s", 1)], "north", 1)

    assert [(one.request_id, one.claim_number) for one in again] == [("r", first.claim_number), ("s", 2)]
    assert await ledger.charging.claim([Hint("r", 1)], "north", 2) == []
    assert await ledger.charging.claim([Hint("r", 1)], "east", 1) == []


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
    assert await ledger.charging.claim([Hint("assigned", 1)], "north", 1) == []


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
    await ledger.charging.heartbeat({"north": 1}, [Progress("r", 1, "north", 1, 5_000)], 0)

    await ledger.charging.end([ending("r", delivered_j=4_000)])

    assert (await ledger.intake.request("r")).energy_delivered_j == 5_000


async def test_accepting_the_same_id_again_changes_nothing(ledger):
    await ledger.assigned("r")

    assert await ledger.intake.accept([new_request("r", vehicle_id="EV-2")]) == []

    record = await ledger.intake.request("r")
    assert (record.vehicle_id, record.status, len(record.history)) == ("EV-1", Status.ASSIGNED, 2)


# --- several processes at once ---------------------------------------------------------------------------------

MANY = [f"r{number:02d}" for number in range(40)]


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
        *(one.charging.claim([Hint(request_id, 1)], "north", 1) for request_id in MANY for one in (ledger, rival) * 2)
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
                ledger.charging.claim([Hint(request_id, 1)], "north", 1),
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


async def test_two_processes_that_make_the_same_ledger_at_once_share_it(tmp_path):
    where = tmp_path / "new" / "ledger.sqlite"
    async with contextlib.AsyncExitStack() as stack:
        connections = await asyncio.gather(*(stack.enter_async_context(opened(where)) for _ in range(4)))
        await Ledger(connections[0]).accepted("r")

        assert [await Ledger(one).status("r") for one in connections] == [Status.ACCEPTED] * 4


# --- numbers, epochs, takeovers --------------------------------------------------------------------------------


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
            ledger.charging.claim([Hint(request_id, 1)], at, 1)
            for pair in zip(north, south, strict=True)
            for request_id, at in zip(pair, ("north", "south"), strict=True)
        )
    )

    claims = [claim for answer in answers for claim in answer]
    for at in ("north", "south"):
        assert sorted(one.claim_number for one in claims if one.substation == at) == list(range(1, 21))


async def test_a_refused_claim_or_end_takes_no_number(ledger):
    await ledger.assigned("a", "b", "c")
    await ledger.charging.claim([Hint("a", 1), Hint("b", 9), Hint("nobody", 1), Hint("c", 1)], "north", 1)

    (late,) = await ledger.charging.claim([Hint("b", 1)], "north", 1)
    assert late.claim_number == 3

    await ledger.charging.end([ending("a"), ending("nobody"), ending("b", attempt=4)])
    assert await ledger.charging.end([ending("c")]) == {"c": 2}


async def test_claims_are_numbered_and_answered_in_order_of_arrival(ledger):
    await ledger.assigned("first", "second", "third")

    claims = await ledger.charging.claim([Hint(one, 1) for one in ("third", "first", "second")], "north", 1)

    assert [(one.request_id, one.claim_number) for one in claims] == [("first", 1), ("second", 2), ("third", 3)]


async def test_registering_begins_an_epoch_and_takes_the_charging_rows_along(ledger):
    await ledger.claimed("a", "b")
    await ledger.assigned("still-assigned")
    await ledger.claimed("elsewhere", at="south")
    await ledger.ended("over")
    await ledger.charging.heartbeat({"north": 1}, [Progress("a", 1, "north", 1, 7_000)], 0)

    (tenure,) = await ledger.charging.register([registration("north")])

    assert tenure.epoch == 2
    assert {(one.request_id, one.epoch, one.claim_number, one.energy_delivered_j) for one in tenure.resumed} == {
        ("a", 2, 0, 7_000),
        ("b", 2, 0, 0),
    }
    assert (await ledger.history("a"))[-1] == replace(
        (await ledger.history("a"))[-1], status=Status.CHARGING, epoch=2, reason=Reason.RESUMED
    )
    assert await ledger.status("still-assigned") == Status.ASSIGNED
    assert (await ledger.history("elsewhere"))[-1].epoch == 1


async def test_numbers_begin_anew_with_an_epoch(ledger):
    await ledger.claimed("a", "b")
    await ledger.charging.end([ending("a")])
    await ledger.charging.register([registration("north")])

    (claim,) = await ledger.claimed("c", epoch=2)

    assert claim.claim_number == 1
    assert await ledger.charging.end([ending("b", epoch=2), ending("c", epoch=2)]) == {"b": 1, "c": 2}


async def test_a_process_of_an_old_epoch_changes_nothing(ledger, rival):
    await ledger.claimed("a")
    await ledger.assigned("b")
    await rival.charging.register([registration("north")])

    assert await ledger.charging.claim([Hint("b", 1)], "north", 1) == []
    assert await ledger.charging.end([ending("a", epoch=1)]) == {}
    (answer,) = await ledger.charging.heartbeat({"north": 1}, [Progress("a", 1, "north", 1, 99)], 0)

    assert answer.epoch == 2
    record = await ledger.intake.request("a")
    assert (record.status, record.energy_delivered_j) == (Status.CHARGING, 0)


async def test_registering_several_answers_each_with_its_own_sessions(ledger):
    await ledger.claimed("n", at="north")
    await ledger.claimed("s", at="south")

    tenures = await ledger.charging.register([registration("south"), registration("new"), registration("north")])

    assert {one.substation: (one.epoch, [row.request_id for row in one.resumed]) for one in tenures} == {
        "south": (2, ["s"]),
        "new": (1, []),
        "north": (2, ["n"]),
    }


async def test_the_registry_has_what_was_registered_last(ledger):
    await ledger.charging.register([registration("south", zone="west", metrics_url="http://127.0.0.1:2")])

    assert await ledger.dispatch.registry() == [
        RegisteredSubstation("north", None, 1, "http://127.0.0.1:1"),
        RegisteredSubstation("south", "west", 2, "http://127.0.0.1:2"),
    ]


# --- the heartbeat ---------------------------------------------------------------------------------------------


async def test_progress_never_falls(ledger):
    await ledger.claimed("r")
    told = []
    for delivered_j in (5_000, 3_000, 5_000, 9_000):
        await ledger.charging.heartbeat({"north": 1}, [Progress("r", 1, "north", 1, delivered_j)], 0)
        told.append((await ledger.intake.request("r")).energy_delivered_j)

    assert told == [5_000, 5_000, 5_000, 9_000]
    assert len(await ledger.history("r")) == 3


@pytest.mark.parametrize(
    "wrong", [Progress("r", 2, "north", 1, 9), Progress("r", 1, "south", 1, 9), Progress("r", 1, "north", 2, 9)]
)
async def test_progress_needs_the_right_attempt_substation_and_epoch(ledger, wrong):
    await ledger.claimed("r")

    await ledger.charging.heartbeat({"north": 1, "south": 1}, [wrong], 0)

    assert (await ledger.intake.request("r")).energy_delivered_j == 0


async def test_progress_after_the_end_is_not_written(ledger):
    await ledger.claimed("r")
    await ledger.charging.end([ending("r", delivered_j=5_000)])

    await ledger.charging.heartbeat({"north": 1}, [Progress("r", 1, "north", 1, 9_000)], 0)

    assert (await ledger.intake.request("r")).energy_delivered_j == 5_000


async def test_a_heartbeat_names_charging_rows_that_the_process_does_not_know_and_no_others(ledger):
    await ledger.claimed("known", "unknown")
    await ledger.claimed("elsewhere", at="south")
    await ledger.ended("over")

    (answer,) = await ledger.charging.heartbeat({"north": 1}, [Progress("known", 1, "north", 1, 0)], 0)

    assert (answer.substation, answer.epoch) == ("north", 1)
    assert [(one.request_id, one.attempt, one.epoch) for one in answer.charging] == [("unknown", 1, 1)]


async def test_a_heartbeat_of_several_substations_answers_for_each(ledger):
    await ledger.claimed("n1", "n2", at="north")
    await ledger.claimed("s1", at="south")
    await ledger.assigned("s2", to="south")

    answers = await ledger.charging.heartbeat({"north": 1, "south": 1}, [Progress("n1", 1, "north", 1, 0)], 0)

    assert {one.substation: ([row.request_id for row in one.charging], list(one.assigned)) for one in answers} == {
        "north": (["n2"], []),
        "south": (["s1"], [("s2", 1)]),
    }


async def test_a_heartbeat_names_assigned_rows_that_are_old_and_no_others(ledger, path):
    await ledger.assigned("old")
    await ledger.assigned("elsewhere", to="south")
    await ledger.assigned("late")
    await ledger.claimed("charging")
    await ledger.accepted("accepted")
    let_the_wait_pass(path, "late")

    assert [one.assigned for one in await ledger.charging.heartbeat({"north": 1}, [], 0)] == [(("old", 1),)]
    assert [one.assigned for one in await ledger.charging.heartbeat({"north": 1}, [], 3_600_000)] == [()]


async def test_forgotten_assignments_come_in_the_order_of_the_waiting_room(ledger):
    await ledger.assigned("patient")
    await ledger.assigned("hurried", wait_max_ms=SOON_MS // 2)
    await ledger.assigned("urgent", priority=9)

    (answer,) = await ledger.charging.heartbeat({"north": 1}, [], 0)

    assert [request_id for request_id, _ in answer.assigned] == ["urgent", "hurried", "patient"]


async def test_a_heartbeat_of_a_substation_that_never_registered_is_not_answered(ledger):
    assert await ledger.charging.heartbeat({"nowhere": 1}, [], 0) == []


# --- the waiting room ------------------------------------------------------------------------------------------


async def waiting_room(ledger):
    await ledger.accepted("first")
    await ledger.accepted("second")
    await ledger.accepted("departs-soon", wait_max_ms=SOON_MS // 2)
    await ledger.accepted("urgent", priority=9)
    await ledger.accepted("urgent-and-soon", priority=9, wait_max_ms=SOON_MS // 2)
    return ["urgent-and-soon", "urgent", "departs-soon", "first", "second"]


async def test_who_waits_stands_by_priority_then_deadline_then_arrival(ledger):
    order = await waiting_room(ledger)

    assert [one.request_id for one in await ledger.dispatch.waiting_first(100, 0, [])] == order
    assert [one.request_id for one in await ledger.dispatch.waiting_first(2, 0, [])] == order[:2]
    named = await ledger.dispatch.waiting([Hint(one, 0) for one in sorted(order)])
    assert [one.request_id for one in named] == order


async def test_of_one_deadline_the_earlier_arrival_stands_first(ledger):
    deadline_ms = (await ledger.intake.accept([new_request("clock")]))[0].accepted_at_ms + 1_000
    for one in ("z", "m", "a"):
        await ledger.accepted(one, wait_deadline_ms=deadline_ms)

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

    assert sorted(await ledger.dispatch.expire()) == ["assigned", "waits"]
    assert await ledger.dispatch.expire() == []

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
    assert await ledger.dispatch.expire() == ["r"]


# --- what readings do not show yet -----------------------------------------------------------------------------


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
    await ledger.charging.register([registration("north")])
    await ledger.claimed("c", epoch=2)

    assert await unseen(ledger, Known("north", 1, 2, 0)) == {("c", 1, "north", 11_000, 1)}
    assert await unseen(ledger, Known("north", 2, 0, 0)) == {("c", 1, "north", 11_000, 1)}
    assert await unseen(ledger, Known("north", 2, 1, 0)) == set()


async def test_the_end_of_a_resumed_session_is_subtracted_from_a_reading_of_its_epoch(ledger):
    await ledger.claimed("a")
    await ledger.charging.register([registration("north")])
    await ledger.charging.end([ending("a", epoch=2)])

    assert await unseen(ledger, Known("north", 2, 0, 0)) == {("a", 1, "north", 11_000, -1)}
    assert await unseen(ledger, Known("north", 2, 0, 1)) == set()


async def test_a_request_that_was_given_back_is_not_on_its_way(ledger):
    await ledger.assigned("r")
    await ledger.charging.decline([Hint("r", 1)], "north")

    assert await unseen(ledger, Known("north", 1, 0, 0)) == set()


# --- files that are used, and files that are refused -----------------------------------------------------------


async def refusal(*args, **changes):
    with pytest.raises(Misconfigured) as caught:
        async with opened(*args, **changes):
            pass
    return str(caught.value)


async def test_a_ledger_is_kept_over_a_restart(path):
    async with opened(path) as connection:
        await Ledger(connection).accepted("r")

    async with opened(path) as connection:
        assert await Ledger(connection).status("r") == Status.ACCEPTED


async def test_a_ledger_whose_processes_were_killed_opens_with_everything_that_was_committed(ledger, path, tmp_path):
    await ledger.claimed(*MANY)
    left = tmp_path / "left" / "ledger.sqlite"
    left.parent.mkdir()
    for suffix in ("", "-wal"):  # what lies on the disk at this moment, nothing was closed
        shutil.copyfile(f"{path}{suffix}", f"{left}{suffix}")

    async with opened(left) as connection:
        (tenure,) = await Ledger(connection).charging.register([registration("north")])

    assert {one.request_id for one in tenure.resumed} == set(MANY)


async def test_a_ledger_whose_making_was_cut_short_is_made_anew(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 0

    async with opened(path) as connection:
        await Ledger(connection).accepted("r")


async def test_a_ledger_of_a_newer_schema_is_refused_and_left_as_it_is(tmp_path):
    where = tmp_path / "newer.sqlite"
    async with opened(where) as connection:
        await Ledger(connection).accepted("r")
    with contextlib.closing(sqlite3.connect(where)) as database, database:
        database.execute("UPDATE meta SET value = '2' WHERE name = 'schema_version'")
    before = where.read_bytes()

    said = await refusal(where)

    assert "schema version 2" in said
    assert str(where) in said
    assert where.read_bytes() == before


@pytest.mark.parametrize(
    "tables", ["CREATE TABLE accounts (id INTEGER)", "CREATE TABLE meta (a TEXT)", "CREATE TABLE meta (name, value)"]
)
async def test_somebody_elses_database_is_refused_and_left_as_it_is(tmp_path, tables):
    where = tmp_path / "foreign.sqlite"
    with contextlib.closing(sqlite3.connect(where)) as database, database:
        database.execute(tables)
    before = where.read_bytes()

    assert str(where) in await refusal(where)
    assert where.read_bytes() == before


@pytest.mark.parametrize("content", [b"Dear diary,\n", b"SQLite format 3\x00" + b"\xff" * 5_000, b"\x00" * 4_096])
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path, content):
    where = tmp_path / "diary.txt"
    where.write_bytes(content)

    assert str(where) in await refusal(where)
    assert where.read_bytes() == content


async def test_a_folder_or_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    assert await refusal(tmp_path)
    assert await refusal(tmp_path / "file" / "ledger.sqlite")


async def test_a_process_of_another_speed_is_refused_and_told_the_right_one(path):
    async with opened(path, speed=60.0):
        said = await refusal(path, speed=1.5)
        assert "EVENLOAD_SPEED is 1.5" in said
        assert "set EVENLOAD_SPEED=60" in said
        async with opened(path, speed=60):
            pass


async def test_a_sqlite_file_for_several_hosts_is_refused_before_it_is_made(tmp_path):
    assert "EVENLOAD_LEDGER_SHARED" in await refusal(tmp_path / "ledger.sqlite", shared=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["oracle://host/x", "/tmp/ledger.sqlite", "sqlite://ledger.sqlite", ""])  # noqa: S108
async def test_an_address_that_names_no_ledger_is_refused(url):
    with pytest.raises(Misconfigured, match="EVENLOAD_LEDGER_URL"):
        async with open_ledger(
            url, shared=False, speed=60, startup_timeout_s=5, observe_commit_s=lambda _seconds: None
        ):
            pass


async def test_a_closed_ledger_takes_nothing_more(tmp_path):
    async with opened(tmp_path / "ledger.sqlite") as connection:
        ledger = Ledger(connection)

    with pytest.raises(LedgerUnavailable):
        await ledger.accepted("r")


async def test_a_faulty_batch_is_written_as_a_whole_or_not_at_all(ledger):
    with pytest.raises(LedgerUnavailable):
        await ledger.intake.accept([new_request("good"), new_request("bad", vehicle_id=None)])

    assert await ledger.intake.request("good") is None
    await ledger.accepted("good")


# --- every statement finds its rows by an index ----------------------------------------------------------------

ALL_STATEMENTS = {
    name: text
    for name, text in vars(statements).items()
    if name.isupper() and isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", text)
}
ON_REQUESTS = sorted(
    name for name, text in ALL_STATEMENTS.items() if re.search(r"\b(FROM|JOIN|UPDATE|INTO) request\b", text)
)


PARTIAL_INDEXES = "waiting|open|assigned|charging|ended|deadline|terminal"


class AnyParameter(dict):
    def __missing__(self, name):
        return "[]" if name == "rows" else 1


def query_plan(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as database:
        rendered = statements.render(statement, DIALECT)
        return [row[-1] for row in database.execute(f"EXPLAIN QUERY PLAN {rendered}", AnyParameter())]


def full_scans(plan, statement):
    """Steps that read the whole table; a partial index holds only what is waiting or open, and may be walked."""
    names = {"request", *re.findall(r"\brequest AS (\w+)", statement)}
    return [
        step
        for step in plan
        if (found := re.match(r"SCAN (?:TABLE )?(\w+)(.*)", step))
        and found.group(1) in names
        and not re.search(rf"INDEX request_({PARTIAL_INDEXES})\b", found.group(2))
    ]


@pytest.mark.parametrize("name", list(ON_REQUESTS))
async def test_no_statement_reads_all_requests(ledger, path, name):
    plan = query_plan(path, ALL_STATEMENTS[name])

    assert plan or name == "ACCEPT"
    assert full_scans(plan, ALL_STATEMENTS[name]) == [], plan


@pytest.mark.parametrize(
    ("name", "index"),
    [("EXPIRE", "request_deadline"), ("WAITING_FIRST", "request_waiting"), ("HISTORY", "transition_request")],
)
async def test_what_is_asked_all_the_time_has_an_index_of_its_own(ledger, path, name, index):
    plan = query_plan(path, ALL_STATEMENTS[name])

    assert any(index in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_the_check_of_plans_sees_a_scan_where_there_is_one(ledger, path):
    for statement in ("SELECT id FROM request WHERE zone = 'x'", "SELECT q.id FROM request AS q WHERE q.zone = 'x'"):
        assert full_scans(query_plan(path, statement), statement)


def test_all_statements_on_requests_are_checked():
    assert {"ACCEPT", "ASSIGN", "CLAIM", "END", "EXPIRE", "UNSEEN", "WAITING_FIRST", "FORGOTTEN_CHARGING"} <= set(
        ON_REQUESTS
    )


# --- the rules hold for any order of events --------------------------------------------------------------------


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
                    one.charging.claim([Hint(request_id, attempt + 1)], to, 1),
                    one.dispatch.give_back([Hint(request_id, attempt + 1)], to, Reason.UNROUTABLE),
                    one.charging.end([ending(request_id, to, attempt=attempt + 1)] if place % 2 else []),
                    one.charging.register([registration(to)] if place == attempt == 2 else []),
                )
            )
        )

    histories, _ = all_histories(path)
    assert histories.keys() == set(ids)
    assert all(faults(history) == [] for history in histories.values())
    assert any(len(history) > 2 for history in histories.values())
