"""A process whose beats are late, unanswered or in vain, on virtual time."""

import asyncio

import pytest
from harness.slow_ledger import LOCK_TIMEOUT_S, Hosting, let_sweep

from services.ledger.states import Reason, Status
from services.messages import Hint

LATE_S = 5.4
"""Longer than a lease, and shorter than the silence after which the sweep acts."""


def hosting(ledger, *substations):
    """A process that holds these substations, whose sessions `a`, `b`… charge, one at each."""
    process = Hosting(ledger, *substations)
    assert ledger.when(lambda: all(not one.substation.stands_still for one in process.workers.values())) is not None
    names = "abc"[: len(substations)]

    async def charge():
        for name, substation in zip(names, substations, strict=True):
            await ledger.claimed(name, at=substation, energy_requested_j=3_600_000_000)

    asyncio.run(charge())
    assert ledger.when(lambda: process.is_charging(*names)) is not None
    return process


def last(ledger, request_id):
    [line] = ledger.rows(
        "SELECT status, reason FROM transition WHERE request_id = ? ORDER BY number DESC LIMIT 1", request_id
    )
    return line


def interruptions(ledger):
    return dict(ledger.rows("SELECT id, interruptions FROM request"))


@pytest.mark.parametrize("takes_s", [{"beat": LATE_S}, {"any": LATE_S}], ids=["beats", "all writes"])
def test_whose_beats_are_always_late_gives_its_sessions_to_others_and_settles_them(slow_ledger, takes_s):
    hosting(slow_ledger, "north")
    let_sweep(slow_ledger)
    slow_ledger.takes_s = takes_s

    assert slow_ledger.when(lambda: slow_ledger.status("a") == Status.ACCEPTED) is not None

    assert last(slow_ledger, "a") == (Status.ACCEPTED, Reason.SUBSTATION_LOST)
    assert interruptions(slow_ledger) == {"a": 0}


def test_whose_beats_are_never_answered_gives_its_sessions_to_others(slow_ledger):
    hosting(slow_ledger, "north")
    let_sweep(slow_ledger)
    slow_ledger.unanswered = {"beat", "release"}

    assert slow_ledger.when(lambda: slow_ledger.status("a") == Status.ACCEPTED) is not None

    assert last(slow_ledger, "a") == (Status.ACCEPTED, Reason.SUBSTATION_LOST)


def test_a_lease_that_was_given_back_is_taken_again_once_the_ledger_is_fast(slow_ledger):
    process = hosting(slow_ledger, "north")
    let_sweep(slow_ledger)
    slow_ledger.takes_s = {"beat": LATE_S}
    assert slow_ledger.when(lambda: slow_ledger.status("a") == Status.ACCEPTED) is not None
    slow_ledger.takes_s = {}

    assert slow_ledger.when(lambda: not process.substation("north").stands_still) is not None
    assert slow_ledger.calls.count("release") == 1


def test_a_lease_that_was_given_back_and_taken_by_another_process_ends_no_other(slow_ledger):
    process = hosting(slow_ledger, "north", "south")
    let_sweep(slow_ledger)
    slow_ledger.takes_s = {"beat": LATE_S}
    assert slow_ledger.when(lambda: slow_ledger.calls.count("release") == 2) is not None
    slow_ledger.takes_s = {}
    other = Hosting(slow_ledger, "north")

    taken = slow_ledger.when(
        lambda: not (process.substation("south").stands_still or other.substation("north").stands_still)
    )
    assert taken is not None
    slow_ledger.let_pass(30)
    assert not process.substation("south").stands_still
    assert not process.substation("north").is_held


@pytest.mark.parametrize("how", ["late once", "away", "refused", "frozen"])
def test_a_substation_that_is_kept_from_renewing_keeps_its_sessions_unless_it_renews_in_vain(slow_ledger, how):
    """Where nobody sees a renewal, the lease is not given back: that would only cost the sessions their place."""
    process = hosting(slow_ledger, "north")
    match how:
        case "late once":
            slow_ledger.takes_s = {"beat": LATE_S}
            slow_ledger.let_pass(2 * LATE_S)
        case "away":
            slow_ledger.is_away = True
            slow_ledger.let_pass(60)
        case "refused":
            slow_ledger.refused = {"beat"}
            slow_ledger.let_pass(60)
        case "frozen":
            process.freeze()
            slow_ledger.let_pass(60)
            process.thaw()
    slow_ledger.takes_s, slow_ledger.is_away, slow_ledger.refused = {}, False, set()

    slow_ledger.let_pass(10)

    assert process.substation("north").epoch == 1
    assert process.is_charging("a")
    assert interruptions(slow_ledger) == {"a": 0}


def test_stops_and_departures_end_sessions_although_every_beat_is_late(slow_ledger):
    process = hosting(slow_ledger, "north")

    async def add_one_that_leaves():
        await slow_ledger.claimed("leaves", departs_at_ms=slow_ledger.now_ms + 12_000)
        await slow_ledger.intake.withdraw("a")

    slow_ledger.takes_s = {"beat": LATE_S}
    asyncio.run(add_one_that_leaves())

    slow_ledger.let_pass(4 * LATE_S)

    assert process.substation("north").stands_still
    assert last(slow_ledger, "a") == (Status.STOPPED, Reason.REMOTE)
    assert last(slow_ledger, "leaves") == (Status.STOPPED, Reason.EV_DISCONNECTED)


@pytest.mark.parametrize(
    "is_held", [False, True], ids=["a lease that cannot be taken", "a lease that cannot be renewed"]
)
@pytest.mark.parametrize("fault", ["refused", "locked", "slow"])
def test_one_substation_holds_up_no_other_of_its_process(slow_ledger, is_held, fault):
    process = hosting(slow_ledger, "south", "west")
    if not is_held:

        async def lose():
            leases = await slow_ledger.sweeping.leases()
            await slow_ledger.sweeping.lose([one for one in leases if one.substation == "west"])

        asyncio.run(lose())
        process.substation("west").lose()
    match fault:
        case "refused":
            slow_ledger.refused = {"take"}
        case "locked":
            slow_ledger.locked = {"west"}
        case "slow":
            slow_ledger.takes_s = {"take": LOCK_TIMEOUT_S}

    slow_ledger.let_pass(60)

    assert process.substation("south").fenced_total == 0
    assert process.is_charging("a")
    assert process.substation("west").is_held is (is_held or fault == "slow")


def test_a_lease_that_cannot_be_taken_keeps_none_from_being_taken(slow_ledger):
    slow_ledger.locked = {"west"}
    process = Hosting(slow_ledger, "west", "south")

    assert slow_ledger.when(lambda: not process.substation("south").stands_still, within_s=10) is not None
    asyncio.run(slow_ledger.assigned("a", to="south"))

    assert slow_ledger.when(lambda: process.is_charging("a"), within_s=20) is not None
    assert {one: held.is_set() for one, held in process.host.held.items()} == {"west": False, "south": True}
    assert not process.host.all_held.is_set()
    slow_ledger.locked = set()

    assert slow_ledger.when(process.host.all_held.is_set, within_s=40) is not None


def test_who_is_sent_while_its_substation_stands_still_is_not_charged_there(slow_ledger):
    process = hosting(slow_ledger, "north")
    slow_ledger.takes_s = {"beat": LATE_S}
    slow_ledger.let_pass(6)
    asyncio.run(slow_ledger.assigned("late"))

    process.run(lambda: process.loop.create_task(process.workers["north"].take_in([Hint("late", 1)])))
    slow_ledger.let_pass(1)

    assert slow_ledger.status("late") == Status.ASSIGNED
