"""A TCP proxy of the tests' own: between any two parts, it stalls, cuts, refuses, delays, slices, and heals.

It runs in a thread of its own, so tests may block or await as they like: every control returns once it is in force.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

HOST = "127.0.0.1"
CHUNK_BYTES = 65_536
CONTROL_WITHIN_S = 30.0
SLICES_APART_S = 0.001
"""Or the receiver would find slices together again."""
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Direction(Enum):
    """Which way bytes flow, as the client sees it."""

    TO_TARGET = "to target"
    FROM_TARGET = "from target"


BOTH = (Direction.TO_TARGET, Direction.FROM_TARGET)


@dataclass(eq=False)
class _Link:
    """One client's connection and the one to the target that serves it."""

    client: socket.socket
    target: socket.socket
    serving: asyncio.Task[None] | None = None

    @property
    def sockets(self) -> tuple[socket.socket, socket.socket]:
        return self.client, self.target


class TcpProxy:
    """Listens on a free loopback port while its block runs, and forwards to a port that may come and go.

    What a stall holds back is not lost: it flows on after `heal`, as after a network partition. A connection whose
    target refuses is reset.
    """

    def __init__(self, target_port: int, target_host: str = HOST) -> None:
        self._target = (target_host, target_port)
        # Never listens: it keeps the port ours while connections are refused.
        self._reservation = _bound(0)
        self.port: int = self._reservation.getsockname()[1]
        self.accepted = 0
        """Connections taken so far."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{self.port}", daemon=True)
        self._flowing = {direction: asyncio.Event() for direction in BOTH}
        self._delay_s = 0.0
        self._slice_bytes = CHUNK_BYTES
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.heal()
        return self

    def __exit__(self, *_error: object) -> None:
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONTROL_WITHIN_S)
        self._loop.close()
        self._reservation.close()

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._links)

    def stall(self, *directions: Direction) -> None:
        """Pass nothing that way any more (both ways, when none is named), on old and new connections."""
        self._control(self._set(directions or BOTH, flowing=False))

    def cut(self) -> None:
        """Reset every connection that is open now, on both sides; new ones are taken."""
        self._control(self._cut())

    def refuse(self) -> None:
        """Refuse new connections, as a port where nobody listens; those that are open go on."""
        self._control(self._refuse())

    def delay(self, seconds: float) -> None:
        """Hold every piece that long before it goes on."""
        self._control(self._shape(delay_s=seconds, slice_bytes=self._slice_bytes))

    def slice(self, size: int) -> None:
        """Pass on in pieces of at most `size` bytes."""
        self._control(self._shape(delay_s=self._delay_s, slice_bytes=size))

    def heal(self) -> None:
        """Be as new: accept, and pass everything on at once; what a stall held back comes first."""
        self._control(self._heal())

    def _control(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(CONTROL_WITHIN_S)

    async def _set(self, directions: tuple[Direction, ...], *, flowing: bool) -> None:
        for direction in directions:
            if flowing:
                self._flowing[direction].set()
            else:
                self._flowing[direction].clear()

    async def _shape(self, *, delay_s: float, slice_bytes: int) -> None:
        self._delay_s, self._slice_bytes = delay_s, slice_bytes

    async def _heal(self) -> None:
        await self._shape(delay_s=0.0, slice_bytes=CHUNK_BYTES)
        await self._set(BOTH, flowing=True)
        if self._listener is None:
            self._listener = _bound(self.port)
            self._listener.listen(128)
            self._accepting = self._loop.create_task(self._accept(self._listener))

    async def _refuse(self) -> None:
        if self._accepting is not None and self._listener is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._listener.close()
            self._listener = None

    async def _cut(self) -> None:
        links = list(self._links)
        tasks = [link.serving for link in links if link.serving is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in links:
            self._close(link, reset=True)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            client.setblocking(False)
            self.accepted += 1
            link = _Link(client, _nonblocking())
            self._links.add(link)
            link.serving = self._loop.create_task(self._serve(link))

    async def _serve(self, link: _Link) -> None:
        reset = True
        try:
            await self._loop.sock_connect(link.target, self._target)
            for one in link.sockets:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(Direction.TO_TARGET, link.client, link.target))
                both.create_task(self._pump(Direction.FROM_TARGET, link.target, link.client))
            reset = False
        except* OSError:
            pass  # a reset of either side is passed on to the other
        finally:
            self._close(link, reset=reset)

    async def _pump(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        flowing = self._flowing[direction]
        while True:
            await flowing.wait()
            data = await self._loop.sock_recv(source, CHUNK_BYTES)
            await asyncio.sleep(self._delay_s)
            size = self._slice_bytes
            for start in range(0, len(data), size):
                await flowing.wait()
                await self._loop.sock_sendall(sink, data[start : start + size])
                if size < CHUNK_BYTES:
                    await asyncio.sleep(SLICES_APART_S)
            if not data:
                await flowing.wait()
                sink.shutdown(socket.SHUT_WR)
                return

    def _close(self, link: _Link, *, reset: bool) -> None:
        if link not in self._links:
            return
        self._links.discard(link)
        for one in link.sockets:
            if reset:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            one.close()


def _bound(port: int) -> socket.socket:
    one = _nonblocking()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind((HOST, port))
    return one


def _nonblocking() -> socket.socket:
    one = socket.socket()
    one.setblocking(False)
    return one
