"""The one place that settles deliveries: return = ack, unreadable = quarantine and ack, anything else = requeue.

Deliveries gather while a batch is handled; the next batch takes all of them, so that a batch walks on as one.
While the ledger is away consumption pauses: nothing is requeued, because that would count against the broker's
delivery limit.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from prometheus_client import Counter

from services.broker import topology
from services.broker.calls import within
from services.broker.publisher import Publisher
from services.broker.rights import needing
from services.broker.session import Session
from services.broker.subscription import Subscription
from services.clock import wall_ms
from services.errors import BrokerUnavailable, InvalidMessage, LedgerRefused, LedgerUnavailable, Unroutable
from services.logs import get_logger
from services.messages import Envelope, Hint, decode

log = get_logger(__name__)

CALL_DEADLINE_S = 10.0
LEDGER_PAUSE_S = 0.5
REQUEUE_PAUSE_S = 0.2
SETTLE_LAST_S = 4.0
BATCH_MAX_DELIVERIES = 64

OUTCOMES = ("acked", "quarantined", "requeued", topology.PROBE)
"""Shown from the start, so that a rate has their first increase, too."""

Handle = Callable[[Sequence[Hint]], Awaitable[None]]


class Consumer:
    """Consumes one queue, hands batches of hints to `handle`, and settles."""

    def __init__(self, queue: str, handle: Handle, publisher: Publisher, settled: Counter) -> None:
        self._queue = queue
        self._handle = handle
        self._publisher = publisher
        self._settled = settled
        for outcome in OUTCOMES:
            settled.labels(queue, outcome)
        self._deliveries: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        self._settling: asyncio.Task[None] | None = None
        self._unconfirmed = 0
        """Deliveries of the batch in hand that the broker will deliver again, because their channel broke."""

    async def consume_for_ever(self, session: Session, *, prefetch: int, tag: str, bind_to: str | None = None) -> None:
        """Consume until cancelled; a delivery in hand is settled first.

        `bind_to` names the exchange for a queue that its consumer itself declares; others must exist. Raises
        `RightLacking` where the user lacks a right at the start.
        """

        async def make(channel: AbstractChannel, name: str) -> AbstractQueue:
            if bind_to is None:
                with needing(session, "read"):
                    return await channel.declare_queue(name, passive=True)
            with needing(session, "configure"):
                queue = await channel.declare_queue(name, durable=True, arguments=dict(topology.QUORUM))
            with needing(session, "write", bind_to):
                await queue.bind(bind_to, name.removeprefix(topology.SUBSTATION_PREFIX))
            return queue

        subscription = Subscription(
            session,
            make,
            self._deliveries.put,
            new_name=lambda: self._queue,
            prefetch=prefetch,
            tag=tag,
            is_shared=bind_to is None,
        )
        consuming = asyncio.create_task(subscription.run())
        settling = asyncio.create_task(self._settle_for_ever())
        try:
            await asyncio.wait({consuming, settling}, return_when=asyncio.FIRST_COMPLETED)
            await (consuming if consuming.done() else settling)
        finally:
            await subscription.stop()
            settling.cancel()
            if self._settling is not None:
                await asyncio.wait({self._settling}, timeout=SETTLE_LAST_S)
                self._settling.cancel()
            consuming.cancel()
            await asyncio.wait({consuming, settling})

    async def _settle_for_ever(self) -> None:
        while True:
            batch = [await self._deliveries.get()]
            while not self._deliveries.empty() and len(batch) < BATCH_MAX_DELIVERIES:
                batch.append(self._deliveries.get_nowait())
            self._settling = asyncio.create_task(self._settle(batch))
            await asyncio.shield(self._settling)

    async def _settle(self, deliveries: Sequence[AbstractIncomingMessage]) -> None:
        """Handle and settle a batch; never raises for what a message holds."""
        self._unconfirmed = 0
        await self._handle_and_give(deliveries)
        if self._unconfirmed:
            log.info("settling_unconfirmed", queue=self._queue, deliveries=self._unconfirmed)

    async def _handle_and_give(self, deliveries: Sequence[AbstractIncomingMessage]) -> None:
        readable: list[tuple[AbstractIncomingMessage, Envelope]] = []
        for delivery in deliveries:
            if delivery.type == topology.PROBE:
                await self._give(delivery, topology.PROBE)
                continue
            try:
                envelope = decode(delivery.body)
            except InvalidMessage as fault:
                await self._quarantine(delivery, str(fault), delivery.body)
                await self._give(delivery, "quarantined")
                continue
            for hint_fault in envelope.faults:
                await self._quarantine(delivery, hint_fault, delivery.body)
            readable.append((delivery, envelope))
        hints = list(dict.fromkeys(hint for _, envelope in readable for hint in envelope.hints))
        if not hints:
            await self._give_all(readable, "acked")
            return
        try:
            await self._patiently(hints)
        except Exception as error:  # a fault of the handler must not end consumption
            log.error("batch_handling_failed", queue=self._queue, hints=len(hints), exc_info=error)
            for delivery, envelope in readable:
                await self._after_failure(delivery, envelope)
        else:
            await self._give_all(readable, "acked")

    async def _patiently(self, hints: Sequence[Hint]) -> None:
        while True:
            try:
                await self._handle(hints)
            except LedgerRefused:
                raise  # waiting would not help it, and would hold up what comes after
            except LedgerUnavailable as error:
                log.warning("consumption_paused", queue=self._queue, cause=str(error))
                await asyncio.sleep(LEDGER_PAUSE_S)
            else:
                return

    async def _after_failure(self, delivery: AbstractIncomingMessage, envelope: Envelope) -> None:
        if delivery_number(delivery) < topology.TAKE_APART_AFTER:
            await asyncio.sleep(REQUEUE_PAUSE_S)
            await self._give(delivery, "requeued")
            return
        for hint in envelope.hints:
            try:
                await self._patiently([hint])
            except Exception as error:
                log.error("hint_quarantined", queue=self._queue, request_id=hint.request_id, exc_info=error)
                await self._quarantine(delivery, f"handling failed: {error!r}", json.dumps(hint).encode())
        await self._give(delivery, "acked")

    async def _quarantine(self, delivery: AbstractIncomingMessage, fault: str, body: bytes) -> None:
        log.warning("message_quarantined", queue=self._queue, fault=fault, message_id=delivery.message_id)
        note = json.dumps(
            {
                "queue": self._queue,
                "fault": fault,
                "at_ms": wall_ms(),
                "bytes": len(body),
                "body": body[:4_096].decode("utf-8", "backslashreplace"),
            }
        )
        try:
            await self._publisher.publish(topology.DEAD, "", note.encode(), message_type="quarantined")
        except (BrokerUnavailable, Unroutable) as error:
            # The log line above has it all; holding the delivery would block its neighbours.
            log.error("quarantine_not_published", queue=self._queue, cause=str(error))

    async def _give_all(self, readable: Sequence[tuple[AbstractIncomingMessage, Envelope]], outcome: str) -> None:
        for delivery, _ in readable:
            await self._give(delivery, outcome)

    async def _give(self, delivery: AbstractIncomingMessage, outcome: str) -> None:
        # Not a nack: since RabbitMQ 4.3 that counts towards no limit, and the message comes back for ever.
        call = delivery.reject(requeue=True) if outcome == "requeued" else delivery.ack()
        try:
            await within(CALL_DEADLINE_S, "settling", call)
        except BrokerUnavailable:
            # The channel broke: the broker delivers it again, and the ledger makes that harmless.
            self._unconfirmed += 1
            return
        self._settled.labels(self._queue, outcome).inc()


def delivery_number(delivery: AbstractIncomingMessage) -> int:
    """1 for a first delivery; quorum queues count the returns before this one in a header.

    A queue of another type counts nothing, and would deliver a poisoned message for ever: there the second counts as
    the last one.
    """
    returns = delivery.headers.get("x-delivery-count")
    if isinstance(returns, int):
        return 1 + returns
    return topology.TAKE_APART_AFTER if delivery.redelivered else 1
