"""What any user of the broker can see by AMQP alone: exchanges, and queues with the number of their consumers."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError, ChannelClosed, ChannelNotFoundEntity

from services.broker import topology
from services.errors import BrokerUnavailable

OpenChannel = Callable[[], Awaitable[AbstractChannel]]


@dataclass(frozen=True, slots=True)
class Visible:
    """What was found; AMQP tells neither of bindings and policies nor of the type of a queue."""

    absent_exchanges: list[str]
    consumers: dict[str, int]
    """How many consumers each queue has that is there, by its name."""
    untold: frozenset[str]
    """What this user may not ask about: since RabbitMQ 4.3 that takes some right on the thing."""


async def look_around(open_channel: OpenChannel, queues: Sequence[str]) -> Visible:
    """Look for the exchanges and for these queues; raises `BrokerUnavailable`."""
    absent, consumers, untold = [], dict[str, int](), set[str]()
    channel: AbstractChannel | None = None
    try:
        for exchange in topology.EXCHANGES:
            channel = channel or await open_channel()
            try:
                await channel.get_exchange(exchange)
            except ChannelNotFoundEntity:  # and the channel is closed
                absent.append(exchange)
                channel = None
            except ChannelClosed:  # it refuses to say
                untold.add(exchange)
                channel = None
        for queue in queues:
            channel = channel or await open_channel()
            try:
                declared = await channel.declare_queue(queue, passive=True)
                consumers[queue] = declared.declaration_result.consumer_count or 0
            except ChannelNotFoundEntity:
                channel = None
            except ChannelClosed:  # it refuses to say
                untold.add(queue)
                channel = None
    except (AMQPError, OSError, RuntimeError) as error:
        raise BrokerUnavailable(f"the broker did not tell what it has ({error})") from error
    return Visible(absent, consumers, frozenset(untold))
