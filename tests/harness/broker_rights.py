"""What each broker user may do and what it is refused, tried operation by operation."""

import uuid
from collections.abc import Awaitable, Callable

from aio_pika import Message, connect
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused

from services.broker import topology

SUBSTATION = "tried"
QUEUE = topology.substation_queue(SUBSTATION)
NOWHERE = "nowhere"
"""A routing key that nobody has bound, so that what is published here reaches nobody."""


def publish(exchange: str) -> Callable[[AbstractChannel], Awaitable[object]]:
    async def operation(channel: AbstractChannel) -> None:
        found = channel.default_exchange if not exchange else await channel.get_exchange(exchange, ensure=False)
        await found.publish(Message(b""), NOWHERE, mandatory=False)

    return operation


def take_from(queue: str) -> Callable[[AbstractChannel], Awaitable[object]]:
    async def operation(channel: AbstractChannel) -> None:
        found = await channel.get_queue(queue, ensure=False)
        await found.get(fail=False)

    return operation


def declare_queue(name: str) -> Callable[[AbstractChannel], Awaitable[object]]:
    return lambda channel: channel.declare_queue(name, durable=True, arguments=dict(topology.QUORUM))


def delete_queue(name: str) -> Callable[[AbstractChannel], Awaitable[object]]:
    return lambda channel: channel.queue_delete(name, if_unused=False, if_empty=False)


def bind(queue: str, exchange: str) -> Callable[[AbstractChannel], Awaitable[object]]:
    async def operation(channel: AbstractChannel) -> None:
        found = await channel.get_queue(queue, ensure=False)
        await found.bind(exchange, NOWHERE)

    return operation


async def read_events(channel: AbstractChannel) -> None:
    queue = await channel.declare_queue(f"amq_{uuid.uuid4().hex}", exclusive=True, auto_delete=True)
    await queue.bind(topology.EVENTS, "#")
    await queue.get(fail=False)


OPERATIONS: dict[str, Callable[[AbstractChannel], Awaitable[object]]] = {
    "read events": read_events,
    "declare a queue of any name": declare_queue("charge.else"),
    "declare a substation's queue": declare_queue(QUEUE),
    "declare an exchange": lambda channel: channel.declare_exchange("charge.else"),
    "bind a substation's queue": bind(QUEUE, topology.ASSIGNMENTS),
    "bind the intake to the events": bind(topology.INTAKE, topology.EVENTS),
    "publish to any queue": publish(""),
    **{f"publish to {one}": publish(one) for one in topology.EXCHANGES},
    **{f"take from {one}": take_from(one) for one in (topology.INTAKE, topology.GRAVEYARD, QUEUE)},
    "delete the intake": delete_queue(topology.INTAKE),
    "delete the graveyard": delete_queue(topology.GRAVEYARD),
    "delete an exchange": lambda channel: channel.exchange_delete(topology.REQUESTS),
}

OWN_WORK: dict[str, frozenset[str]] = {
    "gateway": frozenset({"read events", "publish to charge.requests", "publish to charge.events"}),
    "balancer": frozenset(
        {
            *("read events", "take from charge.intake"),
            *("publish to charge.assignments", "publish to charge.events", "publish to charge.dead"),
        }
    ),
    "substation": frozenset(
        {
            *("declare a substation's queue", "bind a substation's queue", f"take from {QUEUE}"),
            *("publish to charge.events", "publish to charge.dead"),
        }
    ),
    "monitor": frozenset(),
}
"""What each user that is not the operator needs, and all that it may do."""


async def allowed(amqp_url: str) -> frozenset[str]:
    """Try every operation on a channel of its own; the names of those that were not refused."""
    found = set()
    async with await connect(amqp_url, timeout=30) as connection:
        for name, operation in OPERATIONS.items():
            channel = await connection.channel()
            try:
                await operation(channel)
            except ChannelAccessRefused:
                continue
            found.add(name)
            await channel.close()
    return frozenset(found)
