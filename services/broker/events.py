"""Events: what somebody may like to know at once. They are hints; a lost one makes nothing wrong, only later."""

import json
import uuid
from collections.abc import Callable
from typing import Any

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

from services.broker import topology
from services.broker.publisher import Publisher
from services.broker.rights import needing
from services.broker.session import Session
from services.broker.subscription import Subscription
from services.errors import InvalidMessage
from services.logs import get_logger
from services.messages import parse_strict_json

log = get_logger(__name__)

LOAD_TABLE = "load_table"
EVENT_MAX_BYTES = 1024 * 1024
PREFETCH = 100


async def publish_event(publisher: Publisher, kind: str, source: str, payload: dict[str, Any]) -> None:
    """Tell whoever listens; raises `BrokerUnavailable`."""
    body = json.dumps({"v": 1, "kind": kind, "source": source, **payload}, separators=(",", ":")).encode()
    await publisher.publish(topology.EVENTS, f"{kind}.{source}", body, message_type=kind, mandatory=False)


async def listen_for_ever(
    session: Session, kind: str, take: Callable[[dict[str, Any]], None], *, refuses_to_start: bool = True
) -> None:
    """Call `take` with each event of `kind` until cancelled; raises as `Subscription.run` does."""

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

    async def make(channel: AbstractChannel, name: str) -> AbstractQueue:
        with needing(session, "configure"):
            queue = await channel.declare_queue(
                name, exclusive=True, auto_delete=True, arguments=dict(topology.EVENT_QUEUE_ARGUMENTS)
            )
        with needing(session, "write", topology.EVENTS):
            await queue.bind(topology.EVENTS, f"{kind}.#")
        return queue

    # A new name each time: a connection that broke half holds its exclusive queue for a while.
    subscription = Subscription(
        session, make, receive, new_name=lambda: f"amq_{uuid.uuid4().hex}", prefetch=PREFETCH, no_ack=True
    )
    await subscription.run(refuses_to_start=refuses_to_start)
