"""Calls to the broker: each has a deadline that holds whatever the library does, and errors in words for people."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from aio_pika.exceptions import AMQPConnectionError, AMQPError, InvalidFrameError, ProtocolSyntaxError

from services.errors import BrokerUnavailable

Answer = TypeVar("Answer")

BROKER_ERRORS = (AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError)
"""What a broker call may raise; a channel that closed under us raises `ChannelInvalidStateError`, a RuntimeError."""

HOPE_S = 0.25
"""How often to ask whether an answer can still come."""
FRAME_MAX_BYTES = 1024 * 1024
"""Far above what RabbitMQ sends: a greeting in another protocol, read as a frame, promises more."""
_CUT_OFF = re.compile(r"Read (?P<read>\d+) bytes but (?P<expected>\d+) bytes expected")

LAST_MOMENT_S = 0.1
"""For the answer that is on the socket of a process which was frozen, and wakes past its deadline."""


async def within(
    seconds: float,
    what: str,
    call: Awaitable[Answer],
    hopeless: Callable[[], str | None] | None = None,
) -> Answer:
    """What `call` returns; raises `BrokerUnavailable` where it fails, or takes longer than `seconds`.

    `hopeless` tells why to wait no longer, and is asked a few times a second.

    The library's own timeouts are no deadlines: a call that is cancelled waits until its channel's end is written, and
    a frozen broker reads nothing. So a call that runs late is cancelled, but not waited for.
    """
    task = asyncio.ensure_future(call)
    cause = None
    try:
        for slice_s in _slices(seconds, of_s=seconds if hopeless is None else HOPE_S):
            await asyncio.wait({task}, timeout=slice_s)
            cause = hopeless() if hopeless is not None else None
            if task.done() or cause is not None:
                break
        if not task.done():
            await asyncio.wait({task}, timeout=LAST_MOMENT_S)
    finally:
        if not task.done():
            task.add_done_callback(_forget)
            task.cancel()
    if not task.done():
        raise BrokerUnavailable(f"{what}: {cause or words(TimeoutError())}")
    if task.cancelled():
        # The library cancels its own futures when a connection breaks: that is no cancellation of ours.
        raise BrokerUnavailable(f"{what}: the connection broke")
    try:
        return task.result()
    except BROKER_ERRORS as error:
        raise BrokerUnavailable(f"{what}: {words(error)}") from error


def _slices(seconds: float, of_s: float) -> Iterator[float]:
    while seconds > 0:
        yield min(seconds, of_s)
        seconds -= of_s


def _forget(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # asyncio complains of exceptions that nobody has looked at


def is_vhost_refused(error: BaseException | None) -> bool:
    """Whether the broker answered the opening of the vhost with an end."""
    return isinstance(error, InvalidFrameError) and "Connection.OpenOk" in str(error)


def words(error: BaseException | None) -> str:
    """What went wrong, for people."""
    if is_vhost_refused(error):  # the library does not pass on what the broker said
        return "it refuses to open the vhost: there is none of that name, or the user has no rights in it"
    cut = _CUT_OFF.search(str(error)) if isinstance(error, AMQPConnectionError) else None
    if cut and cut["read"] == "0":
        return "the other end closed the connection without a word"
    if isinstance(error, ProtocolSyntaxError) or (cut and int(cut["expected"]) > FRAME_MAX_BYTES):
        return "somebody there does not speak AMQP 0-9-1"
    if error is None or isinstance(error, asyncio.CancelledError):
        return "it fell silent"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__
