"""Questions to the broker about what is there and what is allowed; asking changes nothing.

They are asked on a fresh channel, because the broker remembers for each channel what it has allowed, and because a
question about something that is missing closes the channel that it was asked on.
"""

import contextlib
import enum
from collections.abc import AsyncIterator, Awaitable, Callable

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity

from services.broker import topology
from services.broker.calls import within
from services.broker.rights import RightLacking, needing
from services.broker.session import Session
from services.errors import BrokerUnavailable

Question = Callable[[AbstractChannel], Awaitable[object]]


class Untold(enum.Enum):
    """What stands for an answer that the broker refuses to give; see `UNTOLD`."""

    UNTOLD = "untold"


UNTOLD = Untold.UNTOLD
"""Since RabbitMQ 4.3 only a user with some right on an exchange or a queue may ask about it."""

Objection = ChannelClosed | RightLacking
"""What the broker has against a question."""


class Inquiry:
    """Questions over one session, one after the other; each raises what the library raises where nobody answers."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.link = session.link
        """The connection that it was begun on."""
        self._channel: AbstractChannel | None = None

    async def ask(self, question: Question) -> Objection | None:
        """Ask on a channel that is open; returns the broker's objection, or None."""
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._session.channel(publisher_confirms=False)
        try:
            await question(self._channel)
        except (ChannelClosed, RightLacking) as error:
            self._channel = None
            return error
        return None

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            with contextlib.suppress(BrokerUnavailable):
                await within(1, "closing a channel", self._channel.close())

    async def absent_exchanges(self, role: topology.Role) -> dict[str, ChannelNotFoundEntity]:
        """The exchanges of the role that are not there, with the broker's words."""
        looked = {name: await self.absence(name) for name in role.exchanges}
        return {name: objection for name, objection in looked.items() if objection is not None}

    async def absence(self, exchange: str) -> ChannelNotFoundEntity | None:
        """The broker's words where an exchange is not there; None where it is, and where the broker does not tell."""
        objection = await self.ask(lambda channel: channel.get_exchange(exchange))
        return objection if isinstance(objection, ChannelNotFoundEntity) else None

    async def rights_lacking(self, role: topology.Role) -> list[RightLacking]:
        """The rights that the user lacks on the exchanges of its role, as far as these exchanges are there."""
        lacking = []
        for name in role.publishes_to:
            objection = await self.ask(self._unbinding(name, role.hears))
            if isinstance(objection, RightLacking):
                lacking.append(objection)
        return lacking

    def _unbinding(self, name: str, hears: str) -> Question:
        async def unbind(channel: AbstractChannel) -> None:
            target = await channel.get_exchange(name, ensure=False)
            # Taking away a binding that is not there asks for the rights, and does nothing.
            with needing(self._session, "write", hears if hears != name else ""):
                await target.unbind(hears, "no such binding")

        return unbind

    async def consumers(self, queue: str) -> int | Untold | None:
        """How many consumers a queue has; None where there is no such queue, `UNTOLD` where the broker refuses."""
        found = 0

        async def declare(channel: AbstractChannel) -> None:
            nonlocal found
            found = (await channel.declare_queue(queue, passive=True)).declaration_result.consumer_count or 0

        objection = await self.ask(declare)
        if isinstance(objection, ChannelNotFoundEntity):
            return None
        return found if objection is None else UNTOLD


@contextlib.asynccontextmanager
async def inquiring(session: Session) -> AsyncIterator[Inquiry]:
    """An inquiry whose channel is closed after the block."""
    inquiry = Inquiry(session)
    try:
        yield inquiry
    finally:
        await inquiry.close()
