"""Questions to the broker about what is there and what is allowed; asking changes nothing.

They are asked on a fresh channel, because the broker remembers for each channel what it has allowed, and because a
question about something that is missing closes the channel that it was asked on.
"""

import contextlib
import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity

from services.broker import topology
from services.broker.calls import is_away, within, words
from services.broker.events import LOAD_TABLE
from services.broker.rights import RightLacking, needing
from services.broker.session import Session
from services.errors import BrokerUnavailable

Question = Callable[[AbstractChannel], Awaitable[object]]


class Untold(enum.Enum):
    """What stands for an answer that the broker refuses to give; see `UNTOLD`."""

    UNTOLD = "untold"


UNTOLD = Untold.UNTOLD
"""Since RabbitMQ 4.3 only a user with some right on an exchange or a queue may ask about it."""

QUESTION_DEADLINE_S = 5.0
"""For one question, not for a look: how long a look takes depends on the way to the broker."""
NO_BINDING = {"x-evenload": "no such binding"}
"""Arguments that no binding has, because a binding is known by its arguments, too."""

Objection = ChannelClosed | RightLacking
"""What the broker has against a question."""


@dataclass(frozen=True, slots=True)
class Away:
    """A queue that exists, and cannot be used now: its node is down, for example; `said` has the broker's words."""

    said: str


class Inquiry:
    """Questions over one session, one after the other; each raises `BrokerUnavailable` where nobody answers."""

    def __init__(self, session: Session, deadline_s: float | None = None) -> None:
        self._session = session
        self._deadline_s = QUESTION_DEADLINE_S if deadline_s is None else deadline_s
        self.link = session.link
        """The connection that it was begun on."""
        self._channel: AbstractChannel | None = None

    async def ask(self, question: Question, about: str) -> Objection | None:
        """Ask on a channel that is open; returns the broker's objection, or None."""
        channel, self._channel = self._channel, None  # unless it is answered, the channel is of no use any more

        async def asked() -> Objection | AbstractChannel:
            usable = channel
            if usable is None or usable.is_closed:
                usable = await self._session.channel(publisher_confirms=False)
            try:
                await question(usable)
            except (ChannelClosed, RightLacking) as error:
                return error
            return usable

        answer = await within(self._deadline_s, f"asking about {about}", asked())
        if isinstance(answer, ChannelClosed | RightLacking):
            return answer
        self._channel = answer
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
        objection = await self.ask(lambda channel: channel.get_exchange(exchange), f"exchange {exchange!r}")
        return objection if isinstance(objection, ChannelNotFoundEntity) else None

    async def right_lacking(self, exchange: str, hears: str) -> RightLacking | None:
        """The right that a user who publishes to an exchange, and hears another, lacks on them; None also if absent.

        Rights on single topics are not looked for: what is published and bound under a topic tells them by itself.
        """

        async def unbind(channel: AbstractChannel) -> None:
            target = await channel.get_exchange(exchange, ensure=False)
            # Taking away a binding that is not there asks for the rights, and does nothing.
            with needing(self._session, "write", hears if hears != exchange else ""):
                await target.unbind(hears, f"{LOAD_TABLE}.#", dict(NO_BINDING))

        objection = await self.ask(unbind, f"the rights on exchange {exchange!r}")
        return objection if isinstance(objection, RightLacking) and not objection.is_of_topic else None

    async def consumers(self, queue: str) -> int | Untold | Away | None:
        """How many consumers a queue has; None where there is no such queue, `UNTOLD` where the broker refuses."""
        found = 0

        async def declare(channel: AbstractChannel) -> None:
            nonlocal found
            found = (await channel.declare_queue(queue, passive=True)).declaration_result.consumer_count or 0

        objection = await self.ask(declare, f"queue {queue!r}")
        if objection is None:
            return found
        if not isinstance(objection, ChannelNotFoundEntity):
            return UNTOLD
        return Away(words(objection)) if is_away(objection) else None


@contextlib.asynccontextmanager
async def inquiring(session: Session, deadline_s: float | None = None) -> AsyncIterator[Inquiry]:
    """An inquiry whose channel is closed after the block; `deadline_s` is for each question."""
    inquiry = Inquiry(session, deadline_s)
    try:
        yield inquiry
    finally:
        await inquiry.close()
