"""A dispatcher on a real ledger in memory and a load table that stands still; only the broker is a stand-in."""

import asyncio
import random

from prometheus_client import CollectorRegistry

from balancer.dispatcher import Dispatcher
from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.readings import Reading
from balancer.watcher import Watcher
from services.clock import monotonic_s
from services.messages import Hint


class Publisher:
    """What would go to the broker, in its order."""

    def __init__(self):
        self.published = []
        self.faults = {}
        """What a publish to a substation raises."""
        self.confirms = asyncio.Event()
        """Whether the broker confirms; where it does not, a publish waits."""
        self.confirms.set()

    async def publish_hints(self, exchange, routing_key, hints):
        if routing_key in self.faults:
            raise self.faults[routing_key]
        await self.confirms.wait()
        self.published += [(routing_key, hint) for hint in hints]


class DispatchParts:
    """A balancer that has not looked at the waiting room yet."""

    def __init__(self, ledger, connectors=40, zones=None, dispatch=None):
        zones, dispatch = zones or {"north": None}, dispatch or ledger.dispatch
        self.ledger, self.publisher, self.table = ledger, Publisher(), LoadTable()
        self.registry = CollectorRegistry()
        metrics = BalancerMetrics(self.registry)
        self.watcher = Watcher(dispatch, self.table, metrics, 3.0)
        readings = {
            one: Reading(
                one, 1, 1, 0, 0, 304_000, 1_380, 0, connectors, 0, 0, 0, operative=True, taken_at_s=monotonic_s()
            )
            for one in zones
        }
        self.table.refresh(readings, zones, [], 0)
        self.dispatcher = Dispatcher(
            dispatch, self.table, self.watcher, self.publisher, metrics,
            policy="least-utilisation", rng=random.Random(1),
        )  # fmt: skip
        self.look_again = self.watcher.look_again

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

    def unreached(self, substation):
        return self.registry.get_sample_value("evenload_balancer_unreached_total", {"substation": substation})

    def taken(self):
        return self.table.estimate("north", monotonic_s(), 3.0).taken
