"""What every service stands on: the ledger, and two broker connections, one to publish and one to consume."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from services.broker import topology
from services.broker.address import BrokerAddress
from services.broker.connection import connected, until_connected
from services.broker.publisher import Publisher
from services.broker.session import Session, running
from services.broker.upkeep import Upkeep
from services.errors import BrokerUnavailable, LedgerUnavailable, Misconfigured
from services.ledger.connection import LedgerConnection, open_ledger
from services.lifecycle import Life
from services.logs import get_logger

log = get_logger(__name__)

LOOK_EVERY_S = 0.4
GATEWAY_PATIENCE_S = 3.0
"""How long a gateway waits at its start for a broker that gives no answer; the rest of the time it accepts without."""


@dataclass(frozen=True)
class Broker:
    """Two connections: publishing has one of its own, because an alarm blocks it and must not stop consumers."""

    publisher: Publisher
    consuming: Session
    usable: asyncio.Event
    """Set once both are there, and all that the service needs; for a gateway also where it goes on without."""


@contextlib.asynccontextmanager
async def ledger_opened(life: Life) -> AsyncIterator[LedgerConnection]:
    """Open the ledger; raises `Misconfigured` where it cannot be had or used, telling of the broker, too.

    The process is ready only while the ledger can be read and written, and is the one that was opened.
    """
    common = life.common
    async with AsyncExitStack() as stack:
        life.admin.faults.append(_ledger_awaited)
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
                await _look_at_broker(life)
            except Misconfigured as brokers_fault:
                raise Misconfigured(f"{ledgers_fault}; and {brokers_fault}") from None
            except BrokerUnavailable as error:
                log.info("broker_not_looked_at", cause=str(error))
            raise
        finally:
            life.admin.faults.remove(_ledger_awaited)
        life.admin.faults.append(lambda: ledger.fault and f"the ledger cannot be written: {ledger.fault}")
        await stack.enter_async_context(life.background(_watch(ledger, _role_name(life))))
        yield ledger


def _ledger_awaited() -> str:
    return "waiting for the ledger"


@contextlib.asynccontextmanager
async def broker_opened(life: Life) -> AsyncIterator[Broker]:
    """Connect to the broker, once to publish and once to consume, while the block runs already.

    Work that needs no message goes on meanwhile. `Misconfigured` ends the service if the broker cannot be had or used.

    The process is ready only while it has the broker and all that it needs there, unless it is a gateway: that goes on
    accepting without, and a load balancer must not take all of them out for it. It starts without the broker, too, but
    not with one that refuses it.
    """
    common = life.common
    is_gateway = life.service == "gateway"
    address = BrokerAddress(common.amqp_url)
    async with AsyncExitStack() as stack:
        publishing = await stack.enter_async_context(running(address, f"{life.instance} publish"))
        consuming = await stack.enter_async_context(running(address, f"{life.instance} consume"))
        publisher = Publisher(publishing, common.envelope_max)
        upkeep = Upkeep(consuming, publisher, _role(life), life.metrics.topology_missing)
        serious = life.admin.degradations if is_gateway else life.admin.faults
        for told, fault in (
            (serious, lambda: consuming.waiting() or publishing.waiting()),
            (serious, publishing.fault),
            (serious, consuming.fault),
            (serious, upkeep.fault),
            (life.admin.degradations, upkeep.degradation),
        ):
            told.append(fault)
            stack.callback(told.remove, fault)
        usable = asyncio.Event()

        async def see_that_it_is_usable() -> bool:
            for one in (publishing, consuming):
                unanswered_s = GATEWAY_PATIENCE_S if is_gateway else None
                await until_connected(one, common.startup_timeout_s, unanswered_s=unanswered_s)
            await upkeep.require()
            return True

        async def look_after_it() -> None:
            # A service that drains needs it no more: that it cannot be had must not change its exit code.
            while not usable.is_set() and not life.stopping.is_set():
                try:
                    if await life.wait_for(see_that_it_is_usable()):
                        usable.set()
                except BrokerUnavailable as error:
                    log.warning("broker_not_usable_yet", cause=str(error))
                    if is_gateway:
                        usable.set()
                    await asyncio.sleep(LOOK_EVERY_S)
            await upkeep.look_for_ever()

        await stack.enter_async_context(life.background(look_after_it()))
        yield Broker(publisher, consuming, usable)


async def _look_at_broker(life: Life) -> None:
    """Raise `Misconfigured` where the broker cannot be had or used now."""
    async with connected(life.common.amqp_url, f"{life.instance} look", startup_timeout_s=0) as session:
        publisher = Publisher(session, life.common.envelope_max)
        await Upkeep(session, publisher, _role(life), life.metrics.topology_missing).require()


def _role(life: Life) -> topology.Role:
    return topology.ROLES[_role_name(life)]


def _role_name(life: Life) -> str:
    return life.service.removesuffix("s")


async def _watch(ledger: LedgerConnection, role: str) -> None:
    """Look at the ledger all the time: who uses it seldom must notice, too, that it is lost or has returned."""
    lost = False
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        await ledger.look()
        if ledger.fault is not None:
            with contextlib.suppress(LedgerUnavailable):
                await ledger.probe(role)
        if ledger.fault is not None and not lost:
            log.error("ledger_lost", cause=ledger.fault)
        elif ledger.fault is None and lost:
            log.info("ledger_returned")
        lost = ledger.fault is not None
