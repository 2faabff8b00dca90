import random

import pytest
from prometheus_client import CollectorRegistry

from balancer.dispatcher import ROOM_BATCH, Dispatcher
from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.readings import Reading
from balancer.watcher import Watcher
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, LedgerUnavailable, Unroutable
from services.ledger.records import Waiting
from services.ledger.states import Reason
from services.messages import Hint


class Ledger:
    """Accepted rows in their order; assigning takes them out."""

    def __init__(self):
        self.rows = []
        self.assigned = []
        self.given_back = []
        self.away = False

    async def waiting(self, hints):
        return [one for one in self.rows if Hint(one.request_id, one.attempt) in hints]

    async def waiting_first(self, most, older_than_ms, full_zones):
        return [one for one in self.rows if one.zone not in full_zones][:most]

    async def assign(self, assignments):
        if self.away:
            raise LedgerUnavailable("away")
        wanted = {one.request_id for one in assignments}
        changed = {one.request_id for one in self.rows} & wanted
        self.rows = [one for one in self.rows if one.request_id not in changed]
        self.assigned += [(one.request_id, one.substation) for one in assignments if one.request_id in changed]
        return changed

    async def give_back(self, hints, substation, reason):
        self.given_back.append((list(hints), substation, reason))
        return {hint.request_id for hint in hints}


class Publisher:
    def __init__(self):
        self.published = []
        self.fault = None

    async def publish_hints(self, exchange, routing_key, hints):
        if self.fault:
            raise self.fault
        self.published.append((routing_key, list(hints)))


class Parts:
    def __init__(self, connectors=40, zones=None, bays=0):
        zones = zones or {"north": None}
        self.ledger, self.publisher, self.table = Ledger(), Publisher(), LoadTable()
        metrics = BalancerMetrics(CollectorRegistry())
        watcher = Watcher(self.ledger, self.table, metrics, 3.0)
        readings = {
            one: Reading(
                one, 1, 1, 0, 0, 304_000, 1_380, 0, connectors, bays, 0, 0, operative=True, taken_at_s=monotonic_s()
            )
            for one in zones
        }
        self.table.refresh(readings, zones, [], 0)
        self.dispatcher = Dispatcher(
            self.ledger, self.table, watcher, self.publisher, metrics, policy="least-utilisation", rng=random.Random(1)
        )
        self.look_again = watcher.look_again

    def accept(self, *request_ids, zone=None):
        self.ledger.rows += [Waiting(one, 0, 11_000, zone) for one in request_ids]

    async def serve_room(self):
        self.dispatcher._waiting_zones = await self.dispatcher._serve_once(0)

    def ids(self):
        return [one for one, _ in self.ledger.assigned]


@pytest.fixture
async def parts():
    one = Parts()
    await one.serve_room()  # the look that a balancer takes at its start
    return one


async def test_a_hint_is_assigned_and_published(parts):
    parts.accept("a")

    await parts.dispatcher.take_in([Hint("a", 0)])

    assert parts.ledger.assigned == [("a", "north")]
    assert parts.publisher.published == [("north", [Hint("a", 1)])]


async def test_before_its_first_look_at_the_room_a_balancer_lets_nobody_overtake():
    parts = Parts()
    parts.accept("older", "newer")

    await parts.dispatcher.take_in([Hint("newer", 0)])

    assert parts.ids() == []
    assert parts.look_again.is_set()
    await parts.serve_room()
    assert parts.ids() == ["older", "newer"]


async def test_who_finds_no_room_waits_and_newcomers_wait_behind():
    parts = Parts(connectors=1)
    await parts.serve_room()
    parts.accept("a", "b")
    await parts.dispatcher.take_in([Hint("a", 0), Hint("b", 0)])
    assert parts.ids() == ["a"]

    parts.accept("c")
    await parts.dispatcher.take_in([Hint("c", 0)])
    assert parts.ids() == ["a"]

    parts.table.release("a", 1)
    await parts.serve_room()
    assert parts.ids() == ["a", "b"]


async def test_a_full_zone_holds_up_nobody_else():
    parts = Parts(zones={"north": "n", "south": "s"})
    parts.accept(*(f"lost-{number}" for number in range(ROOM_BATCH + 50)), zone="nowhere")
    parts.accept(*(f"r{number}" for number in range(10)))

    await parts.serve_room()
    assert parts.ids() == [f"r{number}" for number in range(10)]

    parts.accept("newcomer")
    await parts.dispatcher.take_in([Hint("newcomer", 0)])
    assert parts.ids()[-1] == "newcomer"
    parts.accept("another", zone="nowhere")
    await parts.dispatcher.take_in([Hint("another", 0)])
    assert parts.look_again.is_set()


async def test_a_failed_assignment_leaves_no_reservation(parts):
    parts.accept("a")
    parts.ledger.away = True
    with pytest.raises(LedgerUnavailable):
        await parts.dispatcher.take_in([Hint("a", 0)])

    assert not parts.table.is_reserved("a", 1)
    assert parts.table.estimate("north", 0, 1).taken == 0
    parts.ledger.away = False
    await parts.dispatcher.take_in([Hint("a", 0)])
    assert parts.ids() == ["a"]


async def test_a_substation_without_a_queue_gives_its_requests_back(parts):
    parts.accept("a")
    parts.publisher.fault = Unroutable("no queue")

    await parts.dispatcher.take_in([Hint("a", 0)])

    assert parts.ledger.given_back == [([Hint("a", 1)], "north", Reason.UNROUTABLE)]
    assert not parts.table.is_reserved("a", 1)


async def test_an_unconfirmed_publish_leaves_the_row_assigned(parts):
    parts.accept("a")
    parts.publisher.fault = BrokerUnavailable("no confirm")

    await parts.dispatcher.take_in([Hint("a", 0)])

    assert parts.ledger.given_back == []
    assert parts.table.is_reserved("a", 1)
