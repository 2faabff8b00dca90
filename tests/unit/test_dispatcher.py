"""In which order a balancer dispatches, and that nobody overtakes those who wait."""

import asyncio

import pytest
from harness.dispatch_parts import DispatchParts

from balancer.dispatcher import MESSAGE_GRACE_MS, ROOM_BATCH
from services.errors import LedgerUnavailable
from services.ledger.dispatch import LedgerDispatch
from services.ledger.states import Status
from services.messages import Hint


class SlowToCommit(LedgerDispatch):
    """A ledger whose commits take as long as the test wants."""

    def __init__(self, ledger):
        super().__init__(ledger)
        self.commits, self.asked = asyncio.Event(), asyncio.Event()
        self.commits.set()

    async def assign(self, assignments):
        self.asked.set()
        await self.commits.wait()
        return await super().assign(assignments)


@pytest.fixture
async def parts(ledger):
    one = DispatchParts(ledger)
    await one.look()  # the look that a balancer takes at its start
    return one


async def test_a_hint_is_assigned_and_published(parts):
    await parts.submit("a")

    assert parts.publisher.published == [("north", Hint("a", 1))]
    assert parts.ledger.rows("SELECT status, attempt, substation FROM request") == [(Status.ASSIGNED, 1, "north")]


async def test_before_its_first_look_at_the_room_a_balancer_lets_nobody_overtake(ledger):
    parts = DispatchParts(ledger)
    await ledger.accepted("older", "newer")

    await parts.dispatcher.take_in([Hint("newer", 0)])

    assert parts.sent() == []
    assert parts.look_again.is_set()
    await parts.look()
    assert parts.sent() == ["older", "newer"]


async def test_who_finds_no_room_waits_and_newcomers_wait_behind(ledger):
    parts = DispatchParts(ledger, connectors=1)
    await parts.look()
    await parts.submit("a", "b")
    assert parts.sent() == ["a"]

    await parts.submit("c")
    assert parts.sent() == ["a"]

    parts.table.release("a", 1)
    await parts.look()
    assert parts.sent() == ["a", "b"]


async def test_a_newcomer_that_is_deferred_while_the_room_is_being_read_is_not_forgotten(ledger):
    parts = DispatchParts(ledger)
    reading = ledger.hold("read")
    look = asyncio.create_task(parts.look())
    await reading.ready()
    await ledger.accepted("older")
    await parts.submit("deferred")
    reading.let_go()
    await look
    assert parts.sent() == []

    await parts.submit("later")
    assert parts.sent() == []

    await parts.look()
    assert parts.sent() == ["older", "deferred", "later"]


async def test_the_room_leaves_out_whom_a_message_is_being_served_for(ledger):
    parts = DispatchParts(ledger, connectors=2)
    await parts.look()
    await ledger.accepted("a")
    ledger.now_ms += MESSAGE_GRACE_MS
    reading, assigning = ledger.hold("read"), ledger.hold("assign")
    look = asyncio.create_task(parts.look())
    await reading.ready()
    message = asyncio.create_task(parts.dispatcher.take_in([Hint("a", 0)]))
    await assigning.ready()

    reading.let_go()
    await look
    assert ledger.calls.count("assign") == 1
    assert parts.table.is_reserved("a", 1)

    assigning.let_go()
    await message
    assert parts.sent() == ["a"]
    assert parts.taken() == 1


async def test_a_row_whose_message_may_still_come_is_left_to_it_for_a_while(parts):
    await parts.ledger.accepted("a")
    parts.ledger.now_ms += MESSAGE_GRACE_MS - 1
    await parts.look()
    assert parts.sent() == []

    parts.ledger.now_ms += 1
    await parts.look()
    assert parts.sent() == ["a"]


async def test_a_full_zone_holds_up_nobody_else(ledger):
    parts = DispatchParts(ledger, zones={"north": "n", "south": "s"})
    await ledger.accepted(*(f"lost-{number}" for number in range(ROOM_BATCH + 50)), zone="nowhere")
    await ledger.accepted(*(f"r{number}" for number in range(10)))

    await parts.look()
    assert sorted(parts.sent()) == [f"r{number}" for number in range(10)]

    await parts.submit("newcomer")
    assert parts.sent()[-1] == "newcomer"
    assert not parts.look_again.is_set()
    await parts.submit("another", zone="nowhere")
    assert parts.look_again.is_set()


async def test_a_failed_assignment_leaves_no_reservation(parts):
    parts.ledger.refused = {"assign"}
    with pytest.raises(LedgerUnavailable):
        await parts.submit("a")

    assert not parts.table.is_reserved("a", 1)
    assert parts.taken() == 0
    parts.ledger.refused = set()
    await parts.dispatcher.take_in([Hint("a", 0)])
    assert parts.sent() == ["a"]


async def test_newcomers_wait_behind_somebody_who_came_to_wait_while_a_newcomer_was_assigned(ledger):
    parts = DispatchParts(ledger, connectors=1)
    await parts.look()
    await ledger.accepted("waits")
    ledger.now_ms += MESSAGE_GRACE_MS
    assigning = ledger.hold("assign")
    newcomer = asyncio.create_task(parts.submit("a"))
    await assigning.ready()
    await parts.look()
    assigning.let_go()
    await newcomer

    parts.table.release("a", 1)
    await parts.submit("later")
    assert parts.sent() == ["a"]

    await parts.look()
    assert parts.sent() == ["a", "waits"]


async def test_newcomers_wait_behind_somebody_who_found_no_room_while_the_waiting_room_was_being_read(ledger):
    parts = DispatchParts(ledger, connectors=1)
    await parts.look()
    await parts.submit("a")
    reading = ledger.hold("read")
    look = asyncio.create_task(parts.look())
    await reading.ready()
    await parts.submit("waits")
    reading.let_go()
    await look

    parts.table.release("a", 1)
    await parts.submit("later")
    assert parts.sent() == ["a"]

    await parts.look()
    assert parts.sent() == ["a", "waits"]


async def test_a_full_page_that_is_being_assigned_is_read_once_and_nobody_overtakes_who_waits_behind_it(ledger):
    slow = SlowToCommit(ledger)
    parts = DispatchParts(ledger, connectors=200, zones=dict.fromkeys("abcd"), dispatch=slow)
    await parts.look()
    page = [f"r{number}" for number in range(ROOM_BATCH)]
    slow.commits.clear()
    message = asyncio.create_task(parts.submit(*page))
    await slow.asked.wait()
    await ledger.accepted("behind")
    ledger.now_ms += MESSAGE_GRACE_MS
    reads = ledger.calls.count("read")

    async with asyncio.timeout(20):
        await parts.look()
    assert ledger.calls.count("read") == reads + 1
    await parts.submit("later")
    assert ledger.calls.count("assign") == 0

    slow.commits.set()
    await message
    await parts.look()
    sent = parts.sent()
    assert (sorted(sent[:ROOM_BATCH]), sorted(sent[ROOM_BATCH:])) == (sorted(page), ["behind", "later"])


async def test_the_room_is_served_whenever_somebody_is_told_to_look_and_goes_on_after_the_ledger_was_away(ledger):
    parts = DispatchParts(ledger)
    await ledger.accepted("a")
    ledger.is_away = True
    serving = asyncio.create_task(parts.dispatcher.serve_waiting_room_for_ever())
    async with asyncio.timeout(20):
        parts.look_again.set()
        while not ledger.calls.count("read"):
            await asyncio.sleep(0)
        ledger.is_away = False
        parts.look_again.set()
        while not parts.publisher.published:
            await asyncio.sleep(0)
    serving.cancel()

    assert parts.sent() == ["a"]
