"""One connection to the broker, for as long as it lasts: it is never mended, only replaced by the next one."""

import asyncio
import socket
import ssl
from typing import Any

from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import InvalidFrameError
from yarl import URL

from services.broker.address import NEXT_ADDRESS_AFTER_S
from services.broker.calls import BrokerEnded, forget, words
from services.broker.reading import FrameReader
from services.errors import BrokerUnavailable

ATTEMPT_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 1.0
CHANNELS_MAX = 65_535
"""Where the broker sets no bound."""


class _Dialer:
    """Opens the library's socket, and keeps hold of it: the library itself cannot let go of a silent peer."""

    def __init__(self, tls: ssl.SSLContext | None, turn: int) -> None:
        self._tls = tls
        self._turn = turn
        self._reader: FrameReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **_options: Any) -> tuple[FrameReader, asyncio.StreamWriter]:
        stream, self._writer = await asyncio.open_connection(
            await self._host(url),
            url.port,
            ssl=self._tls,
            server_hostname=url.host if self._tls else None,
            happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S,
        )
        self._reader = FrameReader(stream)
        return self._reader, self._writer

    async def _host(self, url: URL) -> str:
        """The host by its name, so that the first of its addresses counts that takes a connection.

        After an attempt that was taken and got no answer it is one of its addresses, the next one each time.
        """
        host = url.host or ""
        if not self._turn:
            return host
        found = await asyncio.get_running_loop().getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
        return str(found[self._turn % len(found)][4][0])

    @property
    def end(self) -> tuple[int, str] | None:
        """The code and the words with which the broker has ended the connection; None where it has said nothing."""
        return None if self._reader is None else self._reader.end

    def hang_up(self) -> None:
        """Drop the socket at once, whatever is under way on it."""
        if self._writer is not None:
            self._writer.transport.abort()


class Link:
    """A connection that the broker's console shows as `name`."""

    def __init__(self, url: URL, name: str, tls: ssl.SSLContext | None, turn: int = 0) -> None:
        """`turn` chooses one of the host's addresses, round and round; 0 leaves the choice to the host's name."""
        self._dialer = _Dialer(tls, turn)
        self._connection = Connection(url, client_properties={"connection_name": name})
        self._connection.kwargs["transport_factory"] = self._dialer
        self._connection.close_callbacks.add(self._note_closed)
        self._number = 0
        self.channels_opened = 0
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the connection is over; its value is the cause in words."""

    async def open(self) -> None:
        """Connect and log in; raises `BrokerEnded`, or what the library raises. A failed link must be closed, too."""
        attempt = asyncio.ensure_future(self._connection.connect())
        try:
            await asyncio.wait({attempt}, timeout=ATTEMPT_DEADLINE_S)
        finally:
            if not attempt.done():
                self._dialer.hang_up()
                attempt.cancel()
        if not attempt.done():
            attempt.add_done_callback(forget)
            raise TimeoutError
        if attempt.cancelled():
            raise ConnectionError("the broker closed the connection")
        try:
            attempt.result()
        except InvalidFrameError as error:
            if self._dialer.end is None:
                raise
            raise BrokerEnded(*self._dialer.end) from error

    async def channel(self, *, publisher_confirms: bool, on_return_raises: bool = False) -> AbstractChannel:
        """Open a channel; raises what the library raises."""
        self.channels_opened += 1
        return await self._connection.channel(
            self._next_number(), publisher_confirms=publisher_confirms, on_return_raises=on_return_raises
        )

    def _next_number(self) -> int | None:
        """A channel's number that was not used lately.

        The library takes the number of a channel that the broker has just closed, and may ask to open it before it has
        confirmed that end: the broker never answers that.
        """
        transport = self._connection.transport
        if transport is None:
            return None  # the library refuses by itself
        taken, most = transport.connection.channels, transport.connection.connection_tune.channel_max or CHANNELS_MAX
        for _ in range(most):
            self._number = self._number % most + 1
            if self._number not in taken:
                return self._number
        return None

    @property
    def is_blocked(self) -> bool:
        """Whether the broker has said that it takes no messages from this connection: memory or disk runs out.

        The library has no property for it. Its `ready()` waits while the connection is blocked, and returns at once
        while it is not; one step of it shows which.
        """
        transport = self._connection.transport
        if transport is None:
            return False
        waiting = transport.connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        waiting.close()
        return True

    def drop(self, cause: str) -> None:
        """Give it up for `cause`: whatever is under way on it fails now."""
        if not self.lost.done():
            self.lost.set_result(cause)
        self._dialer.hang_up()

    async def close(self) -> None:
        """Say goodbye where the broker listens, and hang up in any case."""
        closing = asyncio.ensure_future(self._connection.close())
        try:
            await asyncio.wait({closing}, timeout=CLOSE_DEADLINE_S)
        finally:
            self._dialer.hang_up()
            if not closing.done():
                await asyncio.wait({closing}, timeout=CLOSE_DEADLINE_S)
            closing.add_done_callback(forget)
            closing.cancel()

    async def _note_closed(self, _sender: object, error: BaseException | None) -> None:
        if not self.lost.done():
            self.lost.set_result(words(error))


def no_link(what: str) -> BrokerUnavailable:
    """What is raised where there is no connection just now."""
    return BrokerUnavailable(f"{what}: there is no connection to the broker")
