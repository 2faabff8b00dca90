"""Upkeep: a process looks after what it needs at the broker, makes its own anew, and tells what others must make."""

import asyncio
import contextlib

from aio_pika.exceptions import ChannelNotFoundEntity
from prometheus_client import Gauge

from services.broker import topology
from services.broker.address import refused
from services.broker.calls import within, words
from services.broker.inquiry import Inquiry, Objection, inquiring
from services.broker.publisher import Publisher
from services.broker.rights import RightLacking
from services.broker.session import Session
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, Unroutable
from services.logs import get_logger

log = get_logger(__name__)

LOOK_EVERY_S = 2.0
LOOK_DEADLINE_S = 5.0
RIGHTS_EVERY_S = 10.0
"""How often a fresh channel is asked, which remembers no rights; the library keeps something of each channel."""
QUEUES_PER_LOOK = 20
"""A process with a hundred substations asks for all their queues within five looks, and leaves the broker some time."""
ROUTE_PROBE_EVERY_S = 10.0
CURE = topology.MEND

QUEUE_BEHIND = {topology.REQUESTS: topology.INTAKE, topology.DEAD: topology.GRAVEYARD}
"""The queue that takes what a role publishes to an exchange; only an administrator may make it."""


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
        self._of_queues: dict[str, str] = {}
        """What was wrong with a queue of ours when it was looked at last."""
        self.missing: tuple[str, ...] = ()
        """Each missing thing, in words."""

    def fault(self) -> str | None:
        """What is missing, and the cure; None while all is there."""
        return f"the broker's topology is incomplete: {'; '.join(self.missing)}: {CURE}" if self.missing else None

    async def require(self) -> None:
        """See that this broker is one of Evenload's, and allows what the role needs.

        Raises `Misconfigured` where no exchange is there or a right is lacking, `BrokerUnavailable` where the broker
        does not answer. Who is started while a part is missing works by the ledger, and tells what is missing.
        """
        async with inquiring(self._session) as inquiry:
            absent = await within(LOOK_DEADLINE_S, "looking at the exchanges", inquiry.absent_exchanges(self._role))
            if len(absent) == len(self._role.exchanges):
                raise refused(
                    f"the broker at {self._session.address.text} is not set up for Evenload "
                    f"({words(absent[self._role.hears])})",
                    "name the vhost that is, or load there what "
                    "`python -m services.broker.topology operator=<password>` prints",
                )
            for lacking in await within(LOOK_DEADLINE_S, "looking at the rights", inquiry.rights_lacking(self._role)):
                raise lacking

    async def look_for_ever(self) -> None:
        """Look every two seconds, and at once after a loss, until cancelled."""
        while True:
            await self._session.connected.wait()
            self._session.look_again.clear()
            try:
                self._tell(await within(LOOK_DEADLINE_S, "looking at the topology", self._look()))
            except BrokerUnavailable:  # the session looks after its connection
                await self._end_inquiry()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._session.look_again.wait()

    def _tell(self, missing: tuple[str, ...]) -> None:
        self._missing_things.set(len(missing))
        if missing == self.missing:
            return
        self.missing = missing
        if missing:
            log.warning("broker_topology_incomplete", missing=len(missing), cause="; ".join(missing), cure=CURE)
        else:
            log.info("broker_topology_whole")

    async def _current_inquiry(self) -> Inquiry:
        """The inquiry of the looks before, unless it is old, of another connection, or something is missing."""
        now_s, inquiry = monotonic_s(), self._inquiry
        is_old = now_s - self._inquired_since_s > RIGHTS_EVERY_S
        if inquiry is None or is_old or self.missing or inquiry.link is not self._session.link:
            await self._end_inquiry()
            inquiry = Inquiry(self._session)
            self._inquiry, self._inquired_since_s = inquiry, now_s
        return inquiry

    async def _end_inquiry(self) -> None:
        inquiry, self._inquiry = self._inquiry, None
        if inquiry is not None:
            await inquiry.close()

    async def _look(self) -> tuple[str, ...]:
        inquiry = await self._current_inquiry()
        absent = await inquiry.absent_exchanges(self._role)
        missing = [f"exchange {name!r} is missing" for name in absent]
        missing += [error.cause for error in await inquiry.rights_lacking(self._role)]
        for exchange in self._role.publishes_to:
            if exchange in QUEUE_BEHIND:
                missing += await self._behind(exchange, inquiry, is_absent=exchange in absent)
        await self._look_at_own_queues(inquiry)
        missing += self._of_queues.values()
        for one in self._session.subscriptions:
            if isinstance(one.fault, RightLacking):
                missing.append(one.fault.cause)
            elif one.fault is not None and not missing:  # else that is the reason
                missing.append(f"queue {one.name!r} cannot be consumed ({one.fault})")
        return tuple(dict.fromkeys(missing))

    async def _behind(self, exchange: str, inquiry: Inquiry, *, is_absent: bool) -> list[str]:
        """What is missing of the queue that takes what is published to an exchange."""
        queue = QUEUE_BEHIND[exchange]
        consumers = await inquiry.consumers(queue)
        if consumers is None:
            return [f"queue {queue!r} is missing"]
        if exchange != topology.REQUESTS or is_absent:
            return []  # what is published to the dead lies there for people: nobody tries that out
        is_routed, told_at_s = self._publisher.last_routed(exchange)
        # Where nobody consumes, the messages of each try would stay. Where that is untold, somebody may consume.
        if not is_routed or (consumers != 0 and monotonic_s() - told_at_s > ROUTE_PROBE_EVERY_S):
            is_routed = await self._is_routed(exchange)
        return [] if is_routed else [f"queue {queue!r} is not bound to exchange {exchange!r}"]

    async def _is_routed(self, exchange: str) -> bool:
        try:
            await self._publisher.publish(exchange, "", b"", message_type=topology.PROBE)
        except Unroutable:
            return False
        except BrokerUnavailable:
            return self._publisher.last_routed(exchange)[0]
        return True

    async def _look_at_own_queues(self, inquiry: Inquiry) -> None:
        """Make anew what belongs to our own subscriptions, and note what cannot be made."""
        ours = self._session.subscriptions
        start, count = self._next_queue, min(QUEUES_PER_LOOK, len(ours))
        self._next_queue += count
        for one in [ours[(start + step) % len(ours)] for step in range(count)]:
            fault = _of_queue(one.name, await inquiry.ask(one.look))
            self._of_queues.pop(one.name, None)
            if fault is not None:
                self._of_queues[one.name] = fault
        for gone in self._of_queues.keys() - {one.name for one in ours}:
            del self._of_queues[gone]


def _of_queue(queue: str, objection: Objection | None) -> str | None:
    match objection:
        case None:
            return None
        case RightLacking():
            return objection.cause
        case ChannelNotFoundEntity() if "no exchange" in str(objection):
            return None  # the exchange that it is bound to is missing, and told as that
        case ChannelNotFoundEntity():
            return f"queue {queue!r} is missing"
    return f"queue {queue!r} is not as it should be ({words(objection)})"
