"""The balancer's life: see the substations first, then take requests."""

import random
from contextlib import AsyncExitStack
from functools import partial

import aiohttp

from balancer.dispatcher import Dispatcher
from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.scraper import Scraper
from balancer.settings import BalancerSettings
from balancer.sweeper import Sweeper
from balancer.watcher import Watcher
from services.backends import broker_opened, ledger_opened
from services.broker import topology
from services.broker.events import LOAD_TABLE, publish_event
from services.broker.settle import Consumer
from services.ledger.dispatch import LedgerDispatch
from services.ledger.sweeping import LedgerSweeping
from services.lifecycle import Life, run

STALE_AFTER_INTERVALS = 3
TABLE_EVERY_S = 1.0
DAY_MS = 86_400_000


async def serve(life: Life, settings: BalancerSettings) -> None:
    """Balance until told to stop; batches in hand are settled before the end."""
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(ledger_opened(life))
        broker = await stack.enter_async_context(broker_opened(life))
        ledger = LedgerDispatch(connection)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        metrics = BalancerMetrics(life.metrics.registry, settings.policy)
        table = LoadTable()
        watcher = Watcher(ledger, table, metrics, STALE_AFTER_INTERVALS * settings.scrape_interval_s)
        scraper = Scraper(http, settings.scrape_interval_s, metrics.scrapes, watcher.take)
        stack.push_async_callback(scraper.stop)
        dispatcher = Dispatcher(
            ledger,
            table,
            watcher,
            broker.publisher,
            metrics,
            policy=settings.policy,
            rng=random.Random(settings.seed),  # noqa: S311 (ties, not secrets)
        )
        sweeper = Sweeper(LedgerSweeping(connection), metrics, watcher.look_again, life.common.lease_s)
        consumer = Consumer(topology.INTAKE, dispatcher.take_in, broker.publisher, life.metrics.messages_settled)

        async def consume() -> None:
            await broker.usable.wait()
            await consumer.consume_for_ever(broker.consuming, prefetch=settings.prefetch, tag=life.instance)

        life.has_begun = True
        await stack.enter_async_context(
            life.background(
                watcher.follow_registry(scraper),
                watcher.refresh_for_ever(),
                watcher.publish_for_ever(
                    partial(publish_event, broker.publisher, LOAD_TABLE, life.instance),
                    life.admin.causes,
                    TABLE_EVERY_S,
                ),
                dispatcher.serve_waiting_room_for_ever(),
                sweeper.sweep_for_ever(),
                sweeper.forget_for_ever(round(settings.retention_days * DAY_MS)),
                sweeper.audit_for_ever(),
                consume(),
            )
        )
        if await life.wait_for(broker.usable.wait()):
            await life.serve_until_stopped()


def main() -> None:
    """Entry point of `python -m balancer`."""
    run("balancer", BalancerSettings, serve)
