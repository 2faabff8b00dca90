"""Publishing envelopes: persistent, mandatory, confirmed, with a deadline."""

import asyncio
import uuid
from collections.abc import Sequence

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractExchange, AbstractRobustChannel
from aio_pika.exceptions import PublishError

from services.broker.connection import deadline
from services.broker.reconnecting import ReconnectingConnection
from services.errors import Unroutable
from services.messages import Hint, chunked, encode

PUBLISH_DEADLINE_S = 5.0
OPEN_DEADLINE_S = 10.0


class Publisher:
    """A confirming channel on a connection of its own, so that a blocked publisher never stops consumers."""

    def __init__(self, channel: AbstractRobustChannel, envelope_max: int) -> None:
        self._channel = channel
        self._envelope_max = envelope_max
        self._exchanges: dict[str, AbstractExchange] = {}

    @classmethod
    async def open(cls, connection: ReconnectingConnection, envelope_max: int) -> "Publisher":
        """Open the channel; raises `BrokerUnavailable`."""
        async with deadline(OPEN_DEADLINE_S, "opening a channel"):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        return cls(channel, envelope_max)

    async def publish_hints(self, exchange: str, routing_key: str, hints: Sequence[Hint]) -> None:
        """Publish hints in as few envelopes as allowed, and await every confirm.

        Raises `Unroutable` where no queue is bound to the key, `BrokerUnavailable` where the outcome is unknown.
        """
        outcomes = await asyncio.gather(
            *(
                self.publish(exchange, routing_key, encode(chunk), message_type="envelope")
                for chunk in chunked(hints, self._envelope_max)
            ),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def publish(
        self, exchange: str, routing_key: str, body: bytes, *, message_type: str, mandatory: bool = True
    ) -> None:
        """Publish one message and await its confirm; raises as `publish_hints` does."""
        message = Message(
            body,
            # Unique per attempt: the library tells returned messages apart by it.
            message_id=uuid.uuid4().hex,
            type=message_type,
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT if mandatory else DeliveryMode.NOT_PERSISTENT,
        )
        async with deadline(PUBLISH_DEADLINE_S, f"publishing to {exchange}"):
            target = await self._exchange(exchange)
            try:
                await target.publish(message, routing_key, mandatory=mandatory)
            except PublishError:
                raise Unroutable(f"no queue takes {exchange!r} with key {routing_key!r}") from None

    async def _exchange(self, name: str) -> AbstractExchange:
        if name not in self._exchanges:
            self._exchanges[name] = await self._channel.get_exchange(name, ensure=False)
        return self._exchanges[name]
