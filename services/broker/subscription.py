"""A queue that is consumed: set up on a channel of its own, by the same steps at the start and after each loss."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity

from services.broker.calls import is_away, within, words
from services.broker.link import Link
from services.broker.rights import RightLacking, needing
from services.broker.session import Session
from services.errors import BrokerUnavailable
from services.logs import get_logger

log = get_logger(__name__)

SET_UP_DEADLINE_S = 5.0
CANCEL_DEADLINE_S = 1.0
AGAIN_PAUSE_S = 0.5
AGAIN_PAUSE_MAX_S = 2.0
RIVALS_MIN = 2
"""Looks in a row at which others consume the queue, too; our connection before may be the other one for a moment."""
UNSEEN_MAX = 2
"""Looks in a row at which the broker knew no consumer of the queue; the first may have come between two steps."""

Make = Callable[[AbstractChannel, str], Awaitable[AbstractQueue]]
"""Declares and binds the queue of a name, or looks for it where others make it; harmless where all is there."""


class Subscription:
    """Messages of one queue, handed to `take` as long as `run` runs."""

    def __init__(
        self,
        session: Session,
        make: Make,
        take: Callable[[AbstractIncomingMessage], Awaitable[None]],
        *,
        new_name: Callable[[], str],
        prefetch: int,
        tag: str | None = None,
        no_ack: bool = False,
        is_shared: bool = False,
    ) -> None:
        self._session = session
        self._make = make
        self._take = take
        self._new_name = new_name
        self._prefetch = prefetch
        self._tag = tag
        self._no_ack = no_ack
        self._is_shared = is_shared
        self.name = new_name()
        """The queue's name, which may be another one on each connection."""
        self._link: Link | None = None
        """The connection on which it was set up, or tried to be, last."""
        self._fault: Exception | None = None
        self._is_stopping = False
        self._queue: AbstractQueue | None = None
        self._consumer = ""
        self._over: asyncio.Future[str] | None = None
        self._unseen = 0
        self._rivals = [0] * RIVALS_MIN
        """How many others consumed the queue at the last looks."""

    @property
    def rivals(self) -> int:
        """How many others consume a queue that is only ours, and did so at the last looks, too."""
        return 0 if self._is_shared else min(self._rivals)

    @property
    def fault(self) -> Exception | None:
        """Why it is not consumed; None while it is, or was not tried yet on this connection."""
        return self._fault if self._link is self._session.link else None

    @property
    def is_consuming(self) -> bool:
        """Whether the queue is consumed now, as far as one knows."""
        return self._over is not None

    async def run(self, *, refuses_to_start: bool = True) -> None:
        """Consume until cancelled.

        Raises `RightLacking` where the user lacks a right at the first try, unless `refuses_to_start` is False: later
        it is waited for, because then somebody took the right away, and may give it back.
        """
        self._session.subscriptions.append(self)
        may_refuse = refuses_to_start
        try:
            while not self._is_stopping:
                await self._session.connected.wait()
                try:
                    await self._consume()
                    self._session.look_again.set()
                except RightLacking as error:
                    if may_refuse:
                        raise
                    self._note_fault(error)
                except BrokerUnavailable as error:
                    self._note_fault(error)
                may_refuse = False
                await asyncio.sleep(random.uniform(AGAIN_PAUSE_S, AGAIN_PAUSE_MAX_S))  # noqa: S311 (spreads load)
        finally:
            self._session.subscriptions.remove(self)

    async def look(self, channel: AbstractChannel) -> None:
        """Bind anew what is ours, over a channel that may break; consume again where queue or consumer are gone.

        Raises `RightLacking`, or what the library raises.
        """
        if self._is_stopping or self._link is not self._session.link:
            return  # nobody wants it, or it is about to be set up on the new connection
        over = self._over
        try:
            await channel.declare_queue(self.name, passive=True)
        except ChannelNotFoundEntity as error:
            # Not made anew here: a consumer that RabbitMQ has not cancelled yet would stay at the new queue,
            # and its messages would go nowhere. Setting up anew begins with another channel.
            if over is not None and not over.done():
                over.set_result(words(error) if is_away(error) else "somebody deleted the queue")
            raise
        queue = await self._make(channel, self.name)
        seen = queue.declaration_result.consumer_count or 0
        self._rivals = [*self._rivals[1:], max(0, seen - 1)]
        self._unseen = 0 if seen or over is None or over is not self._over else self._unseen + 1
        if self._unseen >= UNSEEN_MAX and over is not None and not over.done():
            over.set_result("the broker knows no consumer")

    async def stop(self) -> None:
        """Be sent nothing more; what was delivered may still be settled."""
        self._is_stopping = True
        if self._queue is None:
            return
        try:
            await within(CANCEL_DEADLINE_S, "cancelling", self._cancelled(self._queue))
        except BrokerUnavailable:
            log.info("consumer_cancel_unconfirmed", queue=self.name)

    async def _cancelled(self, queue: AbstractQueue) -> None:
        await queue.cancel(self._consumer)

    async def _consume(self) -> None:
        """Set up and consume until the channel, the consumer or the connection is over; raises as `run`."""
        link = self._session.link
        if link is None:
            return
        over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if link is not self._link:
            self._link, self.name = link, self._new_name()
        what = f"consuming {self.name}"
        channel = await within(SET_UP_DEADLINE_S, what, link.channel(publisher_confirms=False))
        try:
            await within(SET_UP_DEADLINE_S, what, self._set_up(channel, over))
            if self._is_stopping:
                return
            self._fault, self._over, self._unseen = None, over, 0
            await asyncio.wait({over, link.lost}, return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                log.warning("consumption_lost", queue=self.name, cause=over.result())
        finally:
            self._over = self._queue = None
            if not link.lost.done():
                with contextlib.suppress(BrokerUnavailable):
                    await within(CANCEL_DEADLINE_S, "closing a channel", channel.close())

    async def _set_up(self, channel: AbstractChannel, over: asyncio.Future[str]) -> None:
        async def note_over(_sender: object, error: BaseException | None) -> None:
            if not over.done():
                over.set_result(words(error))

        async def note_cancelled(_frame: object) -> None:
            if not over.done():
                over.set_result("the broker cancelled the consumer: somebody deleted the queue, or it lost its leader")

        channel.close_callbacks.add(note_over)
        (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(note_cancelled)
        await channel.set_qos(prefetch_count=self._prefetch)
        queue = await self._make(channel, self.name)
        with needing(self._session, "read"):
            self._consumer = await queue.consume(self._take, no_ack=self._no_ack, consumer_tag=self._tag)
        self._queue = queue

    def _note_fault(self, error: Exception) -> None:
        if str(error) != str(self._fault):
            log.warning("consumption_awaits_broker", queue=self.name, cause=str(error))
        self._fault = error
