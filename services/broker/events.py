"""Events: what somebody may like to know at once. They are hints; a lost one makes nothing wrong, only later."""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from aio_pika.abc import AbstractIncomingMessage

from services.broker import topology
from services.broker.connection import deadline
from services.broker.publisher import Publisher
from services.broker.reconnecting import ReconnectingConnection
from services.broker.rights import needing
from services.errors import InvalidMessage
from services.logs import get_logger
from services.messages import parse_strict_json

log = get_logger(__name__)

LOAD_TABLE = "load_table"
EVENT_MAX_BYTES = 1024 * 1024


async def publish_event(publisher: Publisher, kind: str, source: str, payload: dict[str, Any]) -> None:
    """Tell whoever listens; raises `BrokerUnavailable`."""
    body = json.dumps({"v": 1, "kind": kind, "source": source, **payload}, separators=(",", ":")).encode()
    await publisher.publish(topology.EVENTS, f"{kind}.{source}", body, message_type=kind, mandatory=False)


@contextlib.asynccontextmanager
async def listening(
    connection: ReconnectingConnection, kind: str, take: Callable[[dict[str, Any]], None]
) -> AsyncIterator[None]:
    """Call `take` with each event of `kind`, also after reconnects; raises `BrokerUnavailable`, `Misconfigured`."""

    async def receive(message: AbstractIncomingMessage) -> None:
        try:
            if len(message.body) > EVENT_MAX_BYTES:
                raise InvalidMessage(f"event of {len(message.body)} bytes")
            event = parse_strict_json(message.body)
            if not isinstance(event, dict) or event.get("v") != 1 or event.get("kind") != kind:
                raise InvalidMessage("not an event of version 1")
            take(event)
        except (InvalidMessage, KeyError, TypeError, ValueError, OverflowError) as fault:
            log.warning("event_dropped", kind=kind, fault=repr(fault))

    async with deadline(10, "listening for events"):
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=100)
        with needing(connection, "configure"):
            queue = await channel.declare_queue(
                exclusive=True, auto_delete=True, arguments=dict(topology.EVENT_QUEUE_ARGUMENTS)
            )
        with needing(connection, "write", topology.EVENTS):
            await queue.bind(topology.EVENTS, f"{kind}.#")
        with needing(connection, "read"):
            await queue.consume(receive, no_ack=True)
    # The connection holds channels weakly: these two names keep the subscription alive.
    yield
    del channel, queue
