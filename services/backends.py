"""What every service stands on: the ledger, and two broker connections, one to publish and one to consume."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aio_pika.abc import AbstractRobustConnection

from services.broker.connection import connected, require_topology
from services.broker.publisher import Publisher
from services.errors import LedgerUnavailable
from services.ledger.connection import LedgerConnection, open_ledger
from services.lifecycle import Life

PROBE_EVERY_S = 1.0


@dataclass(frozen=True)
class Backends:
    """Open connections; publishing has one of its own, because an alarm blocks it and must not stop consumers."""

    ledger: LedgerConnection
    publisher: Publisher
    consuming: AbstractRobustConnection


@contextlib.asynccontextmanager
async def opened(life: Life) -> AsyncIterator[Backends]:
    """Open ledger and broker; raises `Misconfigured` where one cannot be had or used.

    The process is ready only while the ledger can be written.
    """
    common, name = life.common, life.instance
    async with (
        open_ledger(
            common.ledger_url,
            shared=common.ledger_shared,
            speed=common.speed,
            startup_timeout_s=common.startup_timeout_s,
            observe_commit_s=life.metrics.ledger_commit_s.observe,
        ) as ledger,
        life.background(_probe_while_failing(ledger)),
        connected(common.amqp_url, f"{name} publish", common.startup_timeout_s) as publishing,
        connected(common.amqp_url, f"{name} consume", common.startup_timeout_s) as consuming,
    ):
        life.admin.hindrance = lambda: ledger.fault and f"the ledger cannot be written: {ledger.fault}"
        await require_topology(publishing, common.amqp_url)
        yield Backends(ledger, await Publisher.open(publishing, common.envelope_max), consuming)


async def _probe_while_failing(ledger: LedgerConnection) -> None:
    """Who writes seldom must notice, too, that writing goes well again."""
    while True:
        await asyncio.sleep(PROBE_EVERY_S)
        if ledger.fault is not None:
            with contextlib.suppress(LedgerUnavailable):
                await ledger.probe()
