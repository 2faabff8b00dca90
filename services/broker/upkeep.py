"""Upkeep: a process looks after what it needs at the broker, makes its own anew, and tells what others must make."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from aio_pika.exceptions import ChannelNotFoundEntity
from prometheus_client import Gauge

from services.broker import topology
from services.broker.address import refused
from services.broker.calls import is_away, words
from services.broker.inquiry import UNTOLD, Away, Inquiry, Objection, inquiring
from services.broker.lacks import NODES, RIVALS, Lack, cure_of, told
from services.broker.publisher import Publisher
from services.broker.rights import RightLacking
from services.broker.session import Session
from services.broker.subscription import Subscription
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, Unroutable
from services.logs import get_logger

log = get_logger(__name__)

LOOK_EVERY_S = 2.0
RIGHTS_EVERY_S = 10.0
"""How often a fresh channel is asked, which remembers no rights; the library keeps something of each channel."""
QUEUES_PER_LOOK = 20
"""A process with a hundred substations asks for all their queues within five looks, and leaves the broker some time."""
ROUTE_PROBE_EVERY_S = 10.0
UNANSWERED_MIN = 2
"""Times in a row that a question stays unanswered before that is told."""
UNANSWERED_MAX = 3
"""Questions that stay unanswered in one look before it is given up."""
UNFINISHED_MIN = 3
"""Looks in a row that are given up before that is told."""
UNFINISHED_AFTER_S = 10.0

QUEUE_BEHIND = {topology.REQUESTS: topology.INTAKE, topology.DEAD: topology.GRAVEYARD}
"""The queue that takes what a role publishes to an exchange; only an administrator may make it."""

Looked = Callable[[], Awaitable[list[Lack]]]
"""Looks at one thing; raises `BrokerUnavailable`."""


class Upkeep:
    """What one process finds missing at the broker."""

    def __init__(self, session: Session, publisher: Publisher, role: topology.Role, missing_things: Gauge) -> None:
        self._session = session
        self._publisher = publisher
        self._role = role
        self._missing_things = missing_things
        self._inquiry: Inquiry | None = None
        self._inquired_since_s = 0.0
        self._next_queue = 0
        self._found: dict[str, list[Lack]] = {}
        """What was wrong with each thing when it was looked at last; what nobody answers stays as it was."""
        self._unanswered: Counter[str] = Counter()
        self._unfinished = 0
        self._unfinished_cause = ""
        self._finished_at_s = monotonic_s()
        self._lacks: tuple[Lack, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Each thing that is missing, refused or away, in words."""
        return tuple(one.cause for one in self._lacks)

    def fault(self) -> str | None:
        """What requests need and is not there, or cannot be looked at, and the cure; None while all is there."""
        blind_s = monotonic_s() - self._finished_at_s
        if self._unfinished >= UNFINISHED_MIN and blind_s >= UNFINISHED_AFTER_S:
            return (
                f"the broker's topology could not be looked at for {blind_s:.0f} s ({self._unfinished_cause}): see the "
                "broker's log"
            )
        return told(one for one in self._lacks if one.hurts)

    def degradation(self) -> str | None:
        """What no request needs and is not there, and the cure; None while all is there."""
        return told(one for one in self._lacks if not one.hurts)

    async def require(self) -> None:
        """See that this broker is one of Evenload's, and allows what the role needs.

        Raises `Misconfigured` where no exchange is there or a right is lacking, `BrokerUnavailable` where the broker
        does not answer. Who is started while a part is missing works by the ledger, and tells what is missing.
        """
        async with inquiring(self._session) as inquiry:
            absent = await inquiry.absent_exchanges(self._role)
            if len(absent) == len(self._role.exchanges):
                raise refused(
                    f"the broker at {self._session.address.text} is not set up for Evenload "
                    f"({words(absent[self._role.hears])})",
                    "name the vhost that is, or load there what "
                    "`python -m services.broker.topology operator=<password>` prints",
                )
            for name in self._role.publishes_to:
                lacking = await inquiry.right_lacking(name, self._role.hears)
                if lacking is not None:
                    raise lacking

    async def look_for_ever(self) -> None:
        """Look every two seconds, and at once after a loss, until cancelled."""
        while True:
            await self._session.connected.wait()
            self._session.look_again.clear()
            try:
                await self._look()
                self._unfinished, self._finished_at_s = 0, monotonic_s()
            except BrokerUnavailable as error:  # the session looks after its connection
                self._unfinished, self._unfinished_cause = self._unfinished + 1, str(error)
                await self._end_inquiry()
            self._tell(tuple(dict.fromkeys(self._all_lacks())))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._session.look_again.wait()

    def _tell(self, lacks: tuple[Lack, ...]) -> None:
        self._missing_things.set(len(lacks))
        if lacks == self._lacks:
            return
        self._lacks = lacks
        if lacks:
            cure = "; ".join(dict.fromkeys(one.cure for one in lacks))
            log.warning("broker_topology_incomplete", missing=len(lacks), cause="; ".join(self.missing), cure=cure)
        else:
            log.info("broker_topology_whole")

    async def _current_inquiry(self) -> Inquiry:
        """The inquiry of the looks before, unless it is old, of another connection, or something is missing."""
        now_s, inquiry = monotonic_s(), self._inquiry
        is_old = now_s - self._inquired_since_s > RIGHTS_EVERY_S
        if inquiry is None or is_old or self._lacks or inquiry.link is not self._session.link:
            await self._end_inquiry()
            inquiry = Inquiry(self._session)
            self._inquiry, self._inquired_since_s = inquiry, now_s
        return inquiry

    async def _end_inquiry(self) -> None:
        inquiry, self._inquiry = self._inquiry, None
        if inquiry is not None:
            await inquiry.close()

    async def _look(self) -> None:
        """Look at each thing in turn; raises `BrokerUnavailable` where the broker answers too little."""
        inquiry = await self._current_inquiry()
        unanswered = 0
        for about, hurts, look in self._things(inquiry):
            try:
                found = await look()
            except BrokerUnavailable as error:
                unanswered += 1
                self._unanswered[about] += 1
                if inquiry.link is None or inquiry.link.lost.done() or unanswered >= UNANSWERED_MAX:
                    raise
                if self._unanswered[about] < UNANSWERED_MIN:
                    continue
                found = [Lack(str(error), NODES, hurts)]
            else:
                self._unanswered.pop(about, None)
            self._found[about] = found

    def _things(self, inquiry: Inquiry) -> Iterator[tuple[str, bool, Looked]]:
        """What to look at in one look: a name for each, and whether requests need it."""
        for name in self._role.exchanges:
            yield _exchange(name), name != topology.DEAD, partial(_of_exchange, name, inquiry)
        for name in self._role.publishes_to:
            yield f"rights on {name}", name != topology.DEAD, partial(self._of_rights, name, inquiry)
            if name in QUEUE_BEHIND:
                yield f"queue behind {name}", name != topology.DEAD, partial(self._behind, name, inquiry)
        ours = list(self._session.subscriptions)
        for _ in range(min(QUEUES_PER_LOOK, len(ours))):
            one = ours[self._next_queue % len(ours)]
            self._next_queue += 1
            yield _queue(one.name), True, partial(_of_own_queue, one, inquiry)

    def _all_lacks(self) -> Iterator[Lack]:
        ours = self._session.subscriptions
        gone = {about for about in self._found if about.startswith(_queue(""))} - {_queue(one.name) for one in ours}
        for about in gone:
            del self._found[about]
        for those in self._found.values():
            yield from those
        for lacking in self._publisher.topics_refused():
            yield Lack(lacking.cause, lacking.cure)
        is_explained = any(one.hurts for those in self._found.values() for one in those)
        for subscription in ours:
            fault = subscription.fault
            if isinstance(fault, RightLacking):
                yield _of_right(fault)
            elif fault is not None and not is_explained:
                yield Lack(f"queue {subscription.name!r} cannot be consumed ({fault})", cure_of(str(fault)))
            if subscription.rivals:
                count = subscription.rivals + 1
                cause = f"queue {subscription.name!r} has {count} consumers, and only its substation may take from it"
                yield Lack(cause, RIVALS, hurts=False)

    async def _of_rights(self, exchange: str, inquiry: Inquiry) -> list[Lack]:
        lacking = await inquiry.right_lacking(exchange, self._role.hears)
        return [] if lacking is None else [_of_right(lacking)]

    async def _behind(self, exchange: str, inquiry: Inquiry) -> list[Lack]:
        """What is missing of the queue that takes what is published to an exchange."""
        queue, hurts = QUEUE_BEHIND[exchange], exchange != topology.DEAD
        consumers = await inquiry.consumers(queue)
        if consumers is None:
            return [Lack(f"queue {queue!r} is missing", hurts=hurts)]
        if isinstance(consumers, Away):
            return [Lack(f"queue {queue!r} is away ({consumers.said})", NODES, hurts)]
        if not hurts or self._found.get(_exchange(exchange)):
            return []  # what is published to the dead lies there for people: nobody tries that out
        is_routed, told_at_s = self._publisher.last_routed(exchange)
        # Where nobody consumes, the messages of each try would stay. Where that is untold, somebody may consume.
        may_try = consumers is UNTOLD or consumers > 0
        if not is_routed or (may_try and monotonic_s() - told_at_s > ROUTE_PROBE_EVERY_S):
            is_routed = await self._is_routed(exchange)
        return [] if is_routed else [Lack(f"queue {queue!r} is not bound to exchange {exchange!r}")]

    async def _is_routed(self, exchange: str) -> bool:
        try:
            await self._publisher.publish(exchange, "", b"", message_type=topology.PROBE)
        except Unroutable:
            return False
        except BrokerUnavailable:
            return self._publisher.last_routed(exchange)[0]
        return True


def _exchange(name: str) -> str:
    return f"exchange {name}"


def _queue(name: str) -> str:
    return f"queue of ours {name}"


def _of_right(lacking: RightLacking) -> Lack:
    return Lack(lacking.cause, lacking.cure) if lacking.is_of_topic else Lack(lacking.cause)


async def _of_exchange(name: str, inquiry: Inquiry) -> list[Lack]:
    is_absent = await inquiry.absence(name) is not None
    return [Lack(f"exchange {name!r} is missing", hurts=name != topology.DEAD)] if is_absent else []


async def _of_own_queue(one: Subscription, inquiry: Inquiry) -> list[Lack]:
    """Make anew what belongs to a subscription of ours; what cannot be made."""
    lack = _of_objection(one.name, await inquiry.ask(one.look, f"queue {one.name!r}"))
    return [] if lack is None else [lack]


def _of_objection(queue: str, objection: Objection | None) -> Lack | None:
    match objection:
        case None:
            return None
        case RightLacking():
            return _of_right(objection)
        case ChannelNotFoundEntity() if "no exchange" in str(objection):
            return None  # the exchange that it is bound to is missing, and told as that
        case ChannelNotFoundEntity() if is_away(objection):
            return Lack(f"queue {queue!r} is away ({words(objection)})", NODES)
        case ChannelNotFoundEntity():
            return Lack(f"queue {queue!r} is missing")
    said = words(objection)
    return Lack(f"queue {queue!r} is not as it should be ({said})", cure_of(said))
