"""A balancer that another one was faster than, on a real ledger."""

import random
from dataclasses import replace

from harness.ledger import Ledger, opened, registration
from prometheus_client import CollectorRegistry

from balancer.dispatcher import Dispatcher
from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.readings import Reading
from balancer.watcher import Watcher
from services.broker import topology
from services.clock import monotonic_s
from services.ledger.dispatch import LedgerDispatch
from services.messages import Hint


class Overtaken(LedgerDispatch):
    """Somebody else has always just assigned `faster` to the substation in the south."""

    async def assign(self, assignments):
        await super().assign([replace(one, substation="south") for one in assignments if one.request_id == "faster"])
        return await super().assign(assignments)


class Publisher:
    def __init__(self):
        self.published = []

    async def publish_hints(self, exchange, routing_key, hints):
        self.published.append((exchange, routing_key, list(hints)))


async def test_what_another_balancer_was_faster_with_is_not_published_and_keeps_no_reservation(tmp_path):
    async with opened(tmp_path / "ledger.sqlite") as connection:
        ledger, publisher, table = Ledger(connection), Publisher(), LoadTable()
        await ledger.take(registration("north"), registration("south"))
        await ledger.accepted("faster", "ours")
        metrics = BalancerMetrics(CollectorRegistry())
        watcher = Watcher(ledger.dispatch, table, metrics, 3.0)
        north = Reading(
            "north", 1, 1, 0, 0, 304_000, 1_380, 0, 40, 10, 0, 0, operative=True, taken_at_s=monotonic_s()
        )  # fmt: skip
        table.refresh({"north": north}, {"north": None}, [], 0)
        dispatcher = Dispatcher(
            Overtaken(connection), table, watcher, publisher, metrics, policy="least-utilisation", rng=random.Random(1)
        )

        await dispatcher.serve_waiting_room()

        assert publisher.published == [(topology.ASSIGNMENTS, "north", [Hint("ours", 1)])]
        assert (table.is_reserved("faster", 1), table.is_reserved("ours", 1)) == (False, True)
        assert watcher.estimate("north").in_flight == 1
        assert (await ledger.intake.request("faster")).substation == "south"
