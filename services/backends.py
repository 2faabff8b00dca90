"""What every service stands on: the ledger, and two broker connections, one to publish and one to consume."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from aio_pika.abc import AbstractRobustConnection

from services.broker.connection import connected, require_topology
from services.broker.publisher import Publisher
from services.ledger.connection import LedgerConnection, open_ledger
from services.lifecycle import Life


@dataclass(frozen=True)
class Backends:
    """Open connections; publishing has one of its own, because an alarm blocks it and must not stop consumers."""

    ledger: LedgerConnection
    publisher: Publisher
    consuming: AbstractRobustConnection


@contextlib.asynccontextmanager
async def opened(life: Life) -> AsyncIterator[Backends]:
    """Open ledger and broker; raises `Misconfigured` where one cannot be had or used."""
    common, name = life.common, life.instance
    async with (
        open_ledger(
            common.ledger_url,
            shared=common.ledger_shared,
            speed=common.speed,
            lease_s=common.lease_s,
            startup_timeout_s=common.startup_timeout_s,
            observe_commit_s=life.metrics.ledger_commit_s.observe,
        ) as ledger,
        connected(common.amqp_url, f"{name} publish", common.startup_timeout_s) as publishing,
        connected(common.amqp_url, f"{name} consume", common.startup_timeout_s) as consuming,
    ):
        await require_topology(publishing, common.amqp_url)
        yield Backends(ledger, await Publisher.open(publishing, common.envelope_max), consuming)
