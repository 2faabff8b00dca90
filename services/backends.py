"""What every service stands on: the ledger, and two broker connections, one to publish and one to consume."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from services.broker import topology
from services.broker.connection import connected
from services.broker.publisher import Publisher
from services.broker.reconnecting import ReconnectingConnection
from services.broker.rights import require_topology
from services.errors import BrokerUnavailable, LedgerUnavailable, Misconfigured
from services.ledger.connection import LedgerConnection, open_ledger
from services.lifecycle import Life
from services.logs import get_logger

log = get_logger(__name__)

LOOK_EVERY_S = 0.4


@dataclass(frozen=True)
class Backends:
    """Open connections; publishing has one of its own, because an alarm blocks it and must not stop consumers."""

    ledger: LedgerConnection
    publisher: Publisher
    consuming: ReconnectingConnection


@contextlib.asynccontextmanager
async def opened(life: Life) -> AsyncIterator[Backends]:
    """Open ledger and broker; raises as `ledger_opened` and `broker_opened`."""
    async with ledger_opened(life) as ledger, broker_opened(life) as (publisher, consuming):
        yield Backends(ledger, publisher, consuming)


@contextlib.asynccontextmanager
async def ledger_opened(life: Life) -> AsyncIterator[LedgerConnection]:
    """Open the ledger; raises `Misconfigured` where it cannot be had or used, telling of the broker, too.

    The process is ready only while the ledger can be read and written, and is the one that was opened.
    """
    common = life.common
    async with AsyncExitStack() as stack:
        try:
            ledger = await stack.enter_async_context(
                open_ledger(
                    common.ledger_url,
                    shared=common.ledger_shared,
                    speed=common.speed,
                    lease_s=common.lease_s,
                    startup_timeout_s=common.startup_timeout_s,
                    observe_commit_s=life.metrics.ledger_commit_s.observe,
                )
            )
        except Misconfigured as ledgers_fault:
            try:  # one look at the broker, so that who has two faults hears of both at once
                await _connections(stack, life, startup_timeout_s=0)
            except Misconfigured as brokers_fault:
                raise Misconfigured(f"{ledgers_fault}; and {brokers_fault}") from None
            except BrokerUnavailable as error:
                log.info("broker_not_looked_at", cause=str(error))
            raise
        life.admin.faults.append(lambda: ledger.fault and f"the ledger cannot be written: {ledger.fault}")
        await stack.enter_async_context(life.background(_watch(ledger)))
        yield ledger


@contextlib.asynccontextmanager
async def broker_opened(life: Life) -> AsyncIterator[tuple[Publisher, ReconnectingConnection]]:
    """Open the broker, once to publish and once to consume; raises `Misconfigured` where it cannot be had or used.

    The process is ready only while it has the broker, unless it is a gateway: that goes on accepting without, and a
    load balancer must not take all of them out for it.
    """
    common = life.common
    async with AsyncExitStack() as stack:
        publishing, consuming = await _connections(stack, life, common.startup_timeout_s)
        publisher = await Publisher.open(publishing, common.envelope_max)
        faults = [] if life.service == "gateway" else [publishing.fault, consuming.fault]
        life.admin.faults += faults
        try:
            yield publisher, consuming
        finally:
            for one in faults:
                life.admin.faults.remove(one)


async def _connections(
    stack: AsyncExitStack, life: Life, startup_timeout_s: float
) -> tuple[ReconnectingConnection, ReconnectingConnection]:
    url = life.common.amqp_url
    publishing = await stack.enter_async_context(connected(url, f"{life.instance} publish", startup_timeout_s))
    consuming = await stack.enter_async_context(connected(url, f"{life.instance} consume", startup_timeout_s))
    await require_topology(publishing, topology.ROLES[life.service.removesuffix("s")])
    return publishing, consuming


async def _watch(ledger: LedgerConnection) -> None:
    """Look at the ledger all the time: who uses it seldom must notice, too, that it is lost or has returned."""
    lost = False
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        await ledger.look()
        if ledger.fault is not None:
            with contextlib.suppress(LedgerUnavailable):
                await ledger.probe()
        if ledger.fault is not None and not lost:
            log.error("ledger_lost", cause=ledger.fault)
        elif ledger.fault is None and lost:
            log.info("ledger_returned")
        lost = ledger.fault is not None
