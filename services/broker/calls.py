"""Calls to the broker: each has a deadline that holds whatever the library does, and errors in words for people."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from aio_pika.exceptions import AMQPConnectionError, ChannelNotFoundEntity, InvalidFrameError, ProtocolSyntaxError

from services.errors import BrokerUnavailable, EvenloadError

Answer = TypeVar("Answer")

ASK_HOPELESS_EVERY_S = 0.25
"""How often to ask whether an answer can still come."""
FRAME_MAX_BYTES = 1024 * 1024
"""Far above what RabbitMQ sends: a greeting in another protocol, read as a frame, promises more."""
_NO_ENTRY = re.compile(r"vhost .* not found$|access to vhost '.*' refused for user '(?:(?!': ).)*'$")
"""Words without a reason behind them: where a limit is reached or a vhost is down, that follows."""
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

    Errors of our own pass. Of the library any error counts: one that breaks off fails its calls with bare `Exception`.
    `hopeless` tells why not to wait, or to wait no longer, and is asked a few times a second.

    The library's own timeouts are no deadlines: a call that is cancelled waits until its channel's end is written, and
    a frozen broker reads nothing. So a call that runs late is cancelled, but not waited for.
    """
    cause = hopeless() if hopeless is not None else None
    if cause is not None:
        if isinstance(call, Coroutine):
            call.close()
        raise BrokerUnavailable(f"{what}: {cause}")
    task = asyncio.ensure_future(call)
    try:
        cause = await _wait(task, seconds, hopeless)
    finally:
        if not task.done():
            task.add_done_callback(forget)
            task.cancel()
    if not task.done():
        raise BrokerUnavailable(f"{what}: {cause or words(TimeoutError())}")
    if task.cancelled():
        # The library cancels its own futures when a connection breaks: that is no cancellation of ours.
        raise BrokerUnavailable(f"{what}: the connection broke")
    try:
        return task.result()
    except EvenloadError:
        raise
    except Exception as error:
        raise BrokerUnavailable(f"{what}: {words(error)}") from error


async def _wait(task: asyncio.Future[Any], seconds: float, hopeless: Callable[[], str | None] | None) -> str | None:
    """Wait for a task so long, or until that is hopeless: then why."""
    cause = None
    for slice_s in _slices(seconds, of_s=seconds if hopeless is None else ASK_HOPELESS_EVERY_S):
        await asyncio.wait({task}, timeout=slice_s)
        cause = hopeless() if hopeless is not None else None
        if task.done() or cause is not None:
            break
    if not task.done():
        await asyncio.wait({task}, timeout=LAST_MOMENT_S)
    return cause


def _slices(seconds: float, of_s: float) -> Iterator[float]:
    while seconds > 0:
        yield min(seconds, of_s)
        seconds -= of_s


def forget(task: asyncio.Future[Any]) -> None:
    """Look at the exception of a task that nobody waits for any more, because asyncio complains of others."""
    if not task.cancelled():
        task.exception()


class BrokerEnded(ConnectionError):
    """The broker answered, and ended the connection while it was being opened; `code` is AMQP's, `said` its words."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code
        self.said = said

    @property
    def is_refusal(self) -> bool:
        """Whether it does not want us: there is no such vhost, or the user has no rights in it. Limits pass."""
        return self.code == 403 or (self.code == 530 and _NO_ENTRY.search(self.said) is not None)


def words(error: BaseException | None) -> str:
    """What went wrong, for people."""
    cut = _CUT_OFF.search(str(error)) if isinstance(error, AMQPConnectionError) else None
    if cut and cut["read"] == "0":
        return "the other end closed the connection without a word"
    if isinstance(error, InvalidFrameError):
        return f"it sent a frame that cannot be read ({error})"
    if isinstance(error, ProtocolSyntaxError) or (cut and int(cut["expected"]) > FRAME_MAX_BYTES):
        return "somebody there does not speak AMQP 0-9-1"
    if error is None or isinstance(error, asyncio.CancelledError):
        return "it fell silent"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__


def is_away(objection: ChannelNotFoundEntity) -> bool:
    """Whether what was not found exists: RabbitMQ answers 404 as well for a queue whose node is down."""
    return "NOT_FOUND - no " not in str(objection)
