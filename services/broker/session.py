"""A session with the broker: a connection that is watched, and made again for ever after each loss.

It does not believe the library that all is well: a probe of our own asks the broker every two seconds, and a
connection that gives no answer is dropped and made anew.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from aio_pika.abc import AbstractChannel
from yarl import URL

from services.broker.address import BrokerAddress, tls_fault
from services.broker.calls import within, words
from services.broker.link import Link, no_link
from services.clock import monotonic_s
from services.errors import Misconfigured
from services.logs import get_logger

if TYPE_CHECKING:
    from services.broker.subscription import Subscription

log = get_logger(__name__)

SHORTEST_PAUSE_S = 0.25
FIRST_PAUSE_MAX_S = 1.0
LONGEST_PAUSE_S = 5.0
FAULTY_AFTER_S = 10.0
"""How long a connection may be away before its service is unready; a broker's restart takes about as long."""
BREAKS_MAX = 2
"""Connections that may be lost in one outage: a broker that restarts may drop a second one before it is up for good."""
TELL_EVERY_S = 30.0

PROBE_EVERY_S = 2.0
PROBE_DEADLINE_S = 5.0
BLOCKED_MAX_S = 60.0
"""How long to believe a broker that it takes no messages: its word that it does again may have been lost."""
CHANNELS_OPENED_MAX = 10_000
"""The library keeps about 4 KB of each channel until the connection ends; so a connection is renewed after these."""


def pause_s(away_s: float) -> float:
    """Wall seconds until the next attempt of one that has been away for `away_s`.

    Drawn anew each time from a range that grows with the outage, so that a herd of services, which all lost the broker
    at one moment, spreads out before it comes back.
    """
    longest = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_MAX_S, away_s / 2))
    return random.uniform(SHORTEST_PAUSE_S, longest)  # noqa: S311 (spreads load, keeps no secret)


class Session:
    """A connection under one name, which others open channels on while it is there."""

    def __init__(self, address: BrokerAddress, name: str) -> None:
        self.address = address
        self.name = name
        self.link: Link | None = None
        """The connection of this moment; None while there is none."""
        self.connected = asyncio.Event()
        self.has_connected = False
        self.cause: BaseException | None = None
        """Why the last attempt failed."""
        self.tls_fault: Misconfigured | None = None
        """Why the two ends cannot talk because of encryption, where the last attempt failed for that."""
        self.attempted = asyncio.Event()
        """Set after each attempt, whether or not it succeeded."""
        self.subscriptions: list[Subscription] = []
        """What is consumed over it."""
        self.look_again = asyncio.Event()
        """Set where something may be missing at the broker; see `upkeep`."""
        self._away_since_s = monotonic_s()
        """When the outage began; a connection that breaks early does not end it."""
        self._back_at_s: float | None = None
        """When the connection of this attempt was made; None before."""
        self._breaks = 0
        """Connections that were lost in this outage."""
        self._turn = 0
        """Which of the host's addresses the next attempt goes to; 0 leaves that to the host's name."""
        self._told_at_s = 0.0
        self._told = ""

    @property
    def url(self) -> URL:
        """The address, with its password."""
        return self.address.url

    async def channel(self, *, publisher_confirms: bool = True, on_return_raises: bool = False) -> AbstractChannel:
        """Open a channel; raises `BrokerUnavailable` where there is no connection, else what the library raises."""
        if self.link is None:
            raise no_link("opening a channel")
        return await self.link.channel(publisher_confirms=publisher_confirms, on_return_raises=on_return_raises)

    @property
    def is_blocked(self) -> bool:
        """Whether the broker takes no messages over it now."""
        return self.link is not None and self.link.is_blocked

    @property
    def is_deaf(self) -> bool:
        """Whether some queue is not consumed over it now."""
        return self.link is None or not all(one.is_consuming for one in self.subscriptions)

    def fault(self) -> str | None:
        """Why it has been of no use for longer than a restart of the broker takes; None while all is well.

        A connection that is back counts at once, unless those before it broke again and again: then it must last first.
        """
        away_s = monotonic_s() - self._away_since_s
        is_back = self.link is not None and (self._breaks <= BREAKS_MAX or self._has_lasted())
        if is_back or not self.has_connected or away_s < FAULTY_AFTER_S:
            return None
        often = self._breaks > BREAKS_MAX
        lost = f"broke {self._breaks} times in {away_s:.0f} s" if often else f"lost {away_s:.0f} s ago"
        return f"broker connection {self.name!r} {lost}: {self._told}"

    def _has_lasted(self) -> bool:
        """Whether the connection of this moment is older than those that break early."""
        return self._back_at_s is not None and monotonic_s() - self._back_at_s >= FAULTY_AFTER_S

    def waiting(self) -> str | None:
        """What it waits for at the start; None once it has been connected."""
        if self.has_connected:
            return None
        return f"waiting for the broker at {self.address.text}" + (f": {self._told}" if self._told else "")

    async def run(self) -> None:
        """Connect, serve until the connection is lost, and connect again, until cancelled."""
        while True:
            try:
                cause = await self._serve_once()
            except asyncio.CancelledError as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                self.cause, cause = error, words(error)  # the library cancels its own futures
            except Exception as error:  # whatever the library raises: nobody else would make the next attempt
                self.cause, cause = error, words(error)
            self.tls_fault = await self._look_for_tls_fault()
            self._note_away(str(self.tls_fault or cause))
            self.attempted.set()
            await asyncio.sleep(pause_s(monotonic_s() - self._away_since_s))

    async def _look_for_tls_fault(self) -> Misconfigured | None:
        """Look whether encryption is why there was never a connection: a broker that was there needs no such look."""
        return await tls_fault(self.address, self.cause) if self.cause and not self.has_connected else None

    async def _serve_once(self) -> str:
        """Connect, and serve until the connection is lost; returns the cause, or raises what the library raises."""
        link = Link(self.url, self.name, self.address.tls, self._turn)
        try:
            try:
                await link.open()
            except BaseException as error:
                # After a silence the addresses take turns, because the silent one may also be the first to be taken by
                # the host's name. None keeps its turn, whatever it answers, until one of them has let us in.
                if self._turn or isinstance(error, TimeoutError):
                    self._turn += 1
                raise
            self._turn = 0
            self._note_back(link)
            self.attempted.set()
            return await self._until_lost(link)
        finally:
            self.link = None
            self.connected.clear()
            await link.close()

    async def _until_lost(self, link: Link) -> str:
        watching = asyncio.create_task(self._watch(link))
        try:
            either: set[asyncio.Future[Any]] = {watching, link.lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return link.lost.result() if link.lost.done() else "nobody watches it any more"
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    async def _watch(self, link: Link) -> None:
        """Drop a connection on which the broker gives no answer, whatever the library thinks of it."""
        channel: AbstractChannel | None = None
        blocked_since_s: float | None = None
        while not link.lost.done():
            if self._breaks > 1 and self._has_lasted():
                self._breaks = 0
                self._tell_back()
            if not link.is_blocked:
                blocked_since_s = None
                try:
                    channel = await within(PROBE_DEADLINE_S, "the probe", _probed(link, channel))
                except Exception as error:  # as above
                    channel = None  # the library closes one on which a call ran late
                    # A blocked connection gets no answer, either; an alarm must not make everybody reconnect.
                    if not link.is_blocked:
                        link.drop(f"it fell silent ({error})")
            elif blocked_since_s is None:
                blocked_since_s = monotonic_s()
            elif monotonic_s() - blocked_since_s > BLOCKED_MAX_S:
                link.drop(f"it has taken no messages for {BLOCKED_MAX_S:.0f} s")
            if link.channels_opened > CHANNELS_OPENED_MAX:
                link.drop(f"it has opened {CHANNELS_OPENED_MAX} channels, and is renewed")
            await asyncio.sleep(PROBE_EVERY_S)

    def _note_back(self, link: Link) -> None:
        self._back_at_s = monotonic_s()
        if self._breaks == 1:
            self._tell_back()
        self.link, self.has_connected, self.cause = link, True, None
        self.connected.set()
        self.look_again.set()

    def _tell_back(self) -> None:
        away_s = round(monotonic_s() - self._away_since_s, 1)
        log.info("broker_connection_back", connection=self.name, away_s=away_s)

    def _note_away(self, cause: str) -> None:
        now_s = monotonic_s()
        if self._back_at_s is not None:
            self._breaks += 1
            if self._breaks == 1 or self._has_lasted():
                self._breaks, self._away_since_s = 1, now_s
            log.warning("broker_connection_lost", connection=self.name, cause=cause, breaks=self._breaks)
            self._back_at_s = None
        elif cause == self._told and now_s - self._told_at_s < TELL_EVERY_S:
            return
        else:
            event = "broker_still_away" if self.has_connected else "broker_awaited"
            away_s = round(now_s - self._away_since_s, 1)
            log.warning(event, connection=self.name, address=self.address.text, away_s=away_s, cause=cause)
        self._told, self._told_at_s = cause, now_s


async def _probed(link: Link, channel: AbstractChannel | None) -> AbstractChannel:
    if channel is None or channel.is_closed:
        channel = await link.channel(publisher_confirms=False)
    await channel.set_qos(prefetch_count=1)  # a question that needs no right
    return channel


@contextlib.asynccontextmanager
async def running(address: BrokerAddress, name: str) -> AsyncIterator[Session]:
    """A session that connects, and connects again, while the block runs."""
    session = Session(address, name)
    task = asyncio.create_task(session.run())
    try:
        yield session
    finally:
        task.cancel()
        await asyncio.wait({task})
