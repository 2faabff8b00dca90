"""Publishing envelopes: persistent, mandatory, confirmed, with a deadline."""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence

from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractExchange
from aio_pika.exceptions import ChannelClosed, DeliveryError, PublishError

from services.broker.calls import within
from services.broker.rights import RightLacking, right_lacking
from services.broker.session import Session
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, Unroutable
from services.messages import Hint, chunked, encode

PUBLISH_DEADLINE_S = 5.0
CLOSE_DEADLINE_S = 1.0


class _Outlet:
    """A confirming channel for one exchange: a channel that the broker closes takes all with it that is under way."""

    def __init__(self, session: Session, exchange: str) -> None:
        self._session = session
        self._name = exchange
        self._opening = asyncio.Lock()
        self._channel: AbstractChannel | None = None
        self._exchange: AbstractExchange | None = None
        self._opened_at_s = 0.0
        self.answered = 0
        self.is_routed = True
        """Whether the last message found a queue."""
        self.told_at_s = 0.0
        """When the broker last told so."""
        self.refusal: RightLacking | None = None
        """Why the last message was refused."""

    async def send(self, message: Message, routing_key: str, *, mandatory: bool) -> None:
        target = await self._target()
        try:
            await target.publish(message, routing_key, mandatory=mandatory)
        except PublishError:
            self._note(is_routed=False)
            raise Unroutable(f"no queue takes {self._name!r} with key {routing_key!r}") from None
        except DeliveryError:  # a nack is an answer: the channel is well, and others use it
            self._note(is_routed=True)
            raise BrokerUnavailable(
                f"publishing to {self._name}: the broker refuses the message, because a queue is full or fails"
            ) from None
        except ChannelClosed as error:
            self.refusal = right_lacking(self._session, error, "write")
            raise
        self._note(is_routed=True)

    async def give_up_channel(self) -> None:
        """Open another channel for the next message, unless somebody else has just done so."""
        channel = self._channel
        if channel is None or monotonic_s() - self._opened_at_s < PUBLISH_DEADLINE_S / 2:
            return
        self._channel = self._exchange = None
        with contextlib.suppress(BrokerUnavailable):
            await within(CLOSE_DEADLINE_S, "closing a channel", channel.close())

    def _note(self, *, is_routed: bool) -> None:
        self.answered += 1
        self.is_routed, self.told_at_s, self.refusal = is_routed, monotonic_s(), None

    async def _target(self) -> AbstractExchange:
        async with self._opening:
            if self._exchange is None or self._channel is None or self._channel.is_closed:
                self._opened_at_s = monotonic_s()
                self._channel = await self._session.channel(publisher_confirms=True, on_return_raises=True)
                self._exchange = await self._channel.get_exchange(self._name, ensure=False)
            return self._exchange


class Publisher:
    """Publishes over a session of its own, so that a blocked publisher never stops consumers."""

    def __init__(self, session: Session, envelope_max: int) -> None:
        self._session = session
        self._envelope_max = envelope_max
        self._outlets: dict[str, _Outlet] = {}

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
        outlet = self._outlets.setdefault(exchange, _Outlet(self._session, exchange))
        answered_before = outlet.answered
        sending = outlet.send(message, routing_key, mandatory=mandatory)
        try:
            await within(PUBLISH_DEADLINE_S, f"publishing to {exchange}", sending, self._blocked)
        except BrokerUnavailable:
            if outlet.answered == answered_before and self._blocked() is None:
                # It may be the channel that is dead; the session looks after its connection.
                await outlet.give_up_channel()
            raise

    def last_routed(self, exchange: str) -> tuple[bool, float]:
        """Whether the last message to `exchange` found a queue, and when that was told (monotonic s; 0: never)."""
        outlet = self._outlets.get(exchange)
        return (True, 0.0) if outlet is None else (outlet.is_routed, outlet.told_at_s)

    def topics_refused(self) -> list[RightLacking]:
        """The rights that the user lacks on the topics that it publishes under."""
        refusals = [one.refusal for one in self._outlets.values()]
        return [one for one in refusals if one is not None and one.is_of_topic]

    def _blocked(self) -> str | None:
        return "the broker takes no messages now (memory or disk runs out)" if self._session.is_blocked else None
