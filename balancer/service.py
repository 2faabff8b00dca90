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
from balancer.watcher import Watcher
from services.broker import topology
from services.broker.connection import connected
from services.broker.events import LOAD_TABLE, publish_event
from services.broker.publisher import Publisher
from services.broker.settle import Consumer
from services.ledger.connection import open_ledger
from services.ledger.dispatch import LedgerDispatch
from services.lifecycle import Life, run

STALE_AFTER_INTERVALS = 3
TABLE_EVERY_S = 1.0


async def serve(life: Life, settings: BalancerSettings) -> None:
    """Balance until told to stop; batches in hand are settled before the end."""
    common = life.common
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(
            open_ledger(
                common.ledger_url,
                shared=common.ledger_shared,
                speed=common.speed,
                observe_commit_s=life.metrics.ledger_commit_s.observe,
            )
        )
        ledger = LedgerDispatch(connection)
        publishing = await stack.enter_async_context(
            connected(common.amqp_url, f"{life.instance} publish", common.startup_timeout_s)
        )
        consuming = await stack.enter_async_context(
            connected(common.amqp_url, f"{life.instance} consume", common.startup_timeout_s)
        )
        publisher = await Publisher.open(publishing, common.envelope_max)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        metrics = BalancerMetrics(life.metrics.registry)
        table = LoadTable()
        watcher = Watcher(ledger, table, metrics, STALE_AFTER_INTERVALS * settings.scrape_interval_s)
        scraper = Scraper(http, settings.scrape_interval_s, metrics.scrapes, watcher.take)
        stack.push_async_callback(scraper.stop)
        dispatcher = Dispatcher(
            ledger,
            table,
            watcher,
            publisher,
            metrics,
            policy=settings.policy,
            rng=random.Random(settings.seed),  # noqa: S311 (ties, not secrets)
        )
        consumer = Consumer(topology.INTAKE, dispatcher.take_in, publisher, life.metrics.messages_settled)
        await stack.enter_async_context(
            life.background(
                watcher.follow_registry(scraper),
                watcher.refresh_for_ever(),
                watcher.publish_for_ever(partial(publish_event, publisher, LOAD_TABLE, life.instance), TABLE_EVERY_S),
                dispatcher.serve_waiting_room(),
                dispatcher.expire_for_ever(),
                consumer.consume(consuming, prefetch=settings.prefetch, tag=life.instance),
            )
        )
        await life.serve_until_stopped()


def main() -> None:
    """Entry point of `python -m balancer`."""
    run("balancer", BalancerSettings, serve)
