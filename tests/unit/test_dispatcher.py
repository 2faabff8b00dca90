"""Dispatch on a real ledger in memory and a load table whose readings stand still; only the broker is a stand-in."""

import asyncio
import random

import pytest
from prometheus_client import CollectorRegistry

from balancer.dispatcher import MESSAGE_GRACE_MS, ROOM_BATCH, Dispatcher
from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.readings import Reading
from balancer.watcher import Watcher
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, LedgerUnavailable, Unroutable
from services.ledger.states import Reason, Status
from services.messages import Hint


class Publisher:
    """What would go to the broker, in its order."""

    def __init__(self):
        self.published = []
        self.fault = None

    async def publish_hints(self, exchange, routing_key, hints):
        if self.fault:
            raise self.fault
        self.published += [(routing_key, hint) for hint in hints]


class Parts:
    """A balancer that has not looked at the waiting room yet."""

    def __init__(self, ledger, connectors=40, zones=None):
        zones = zones or {"north": None}
        self.ledger, self.publisher, self.table = ledger, Publisher(), LoadTable()
        metrics = BalancerMetrics(CollectorRegistry())
        watcher = Watcher(ledger.dispatch, self.table, metrics, 3.0)
        readings = {
            one: Reading(
                one, 1, 1, 0, 0, 304_000, 1_380, 0, connectors, 0, 0, 0, operative=True, taken_at_s=monotonic_s()
            )
            for one in zones
        }
        self.table.refresh(readings, zones, [], 0)
        self.dispatcher = Dispatcher(
            ledger.dispatch, self.table, watcher, self.publisher, metrics,
            policy="least-utilisation", rng=random.Random(1),
        )  # fmt: skip
        self.look_again = watcher.look_again

    async def submit(self, *request_ids, **changes):
        """Accept requests, and bring the message of each."""
        await self.ledger.accepted(*request_ids, **changes)
        await self.dispatcher.take_in([Hint(one, 0) for one in request_ids])

    async def look(self):
        await self.dispatcher.serve_waiting_room()

    def sent(self):
        """The requests that were published, in that order; the ledger must hold each of them as assigned."""
        sent = [hint.request_id for _, hint in self.publisher.published]
        assigned = self.ledger.rows("SELECT id FROM request WHERE status = 'assigned'")
        assert sorted(sent) == sorted(request_id for (request_id,) in assigned)
        return sent

    def taken(self):
        return self.table.estimate("north", monotonic_s(), 3.0).taken


@pytest.fixture
async def parts(ledger):
    one = Parts(ledger)
    await one.look()  # the look that a balancer takes at its start
    return one


async def test_a_hint_is_assigned_and_published(parts):
    await parts.submit("a")

    assert parts.publisher.published == [("north", Hint("a", 1))]
    assert parts.ledger.rows("SELECT status, attempt, substation FROM request") == [(Status.ASSIGNED, 1, "north")]


async def test_before_its_first_look_at_the_room_a_balancer_lets_nobody_overtake(ledger):
    parts = Parts(ledger)
    await ledger.accepted("older", "newer")

    await parts.dispatcher.take_in([Hint("newer", 0)])

    assert parts.sent() == []
    assert parts.look_again.is_set()
    await parts.look()
    assert parts.sent() == ["older", "newer"]


async def test_who_finds_no_room_waits_and_newcomers_wait_behind(ledger):
    parts = Parts(ledger, connectors=1)
    await parts.look()
    await parts.submit("a", "b")
    assert parts.sent() == ["a"]

    await parts.submit("c")
    assert parts.sent() == ["a"]

    parts.table.release("a", 1)
    await parts.look()
    assert parts.sent() == ["a", "b"]


async def test_a_newcomer_that_is_deferred_while_the_room_is_being_read_is_not_forgotten(ledger):
    parts = Parts(ledger)
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
    parts = Parts(ledger, connectors=2)
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
    parts = Parts(ledger, zones={"north": "n", "south": "s"})
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


async def test_a_substation_without_a_queue_gives_its_requests_back(parts):
    parts.publisher.fault = Unroutable("no queue")

    await parts.submit("a")

    last = (await parts.ledger.history("a"))[-1]
    assert (last.status, last.attempt, last.reason) == (Status.ACCEPTED, 1, Reason.UNROUTABLE)
    assert not parts.table.is_reserved("a", 1)


async def test_an_unconfirmed_publish_leaves_the_row_assigned(parts):
    parts.publisher.fault = BrokerUnavailable("no confirm")

    await parts.submit("a")

    assert await parts.ledger.status("a") is Status.ASSIGNED
    assert parts.table.is_reserved("a", 1)


async def test_the_room_is_served_whenever_somebody_is_told_to_look_and_goes_on_after_the_ledger_was_away(ledger):
    parts = Parts(ledger)
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
