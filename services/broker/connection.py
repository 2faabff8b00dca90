"""Connections to the broker: named for its console, with heartbeats and deadlines, and open about their faults."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aio_pika.exceptions import AMQPError, InvalidFrameError
from yarl import URL

from services.broker.reconnecting import ReconnectingConnection, pause_s
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, Misconfigured
from services.logs import get_logger

log = get_logger(__name__)

HEARTBEAT_S = 10
"""Where the address names none."""
ATTEMPT_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 1.0

BROKER_ERRORS = (AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError)
"""What a broker call may raise; a channel that closed under us raises `ChannelInvalidStateError`, a RuntimeError."""


@contextlib.asynccontextmanager
async def connected(url: str, name: str, startup_timeout_s: float) -> AsyncIterator[ReconnectingConnection]:
    """A connection that the console shows as `name`, and that is made again whenever it breaks.

    Keeps trying for `startup_timeout_s`, then raises `Misconfigured` with the address (without its password).
    """
    connection = await _first_connection(url, name, startup_timeout_s)
    try:
        yield connection
    finally:
        await _close(connection)


async def _first_connection(url: str, name: str, startup_timeout_s: float) -> ReconnectingConnection:
    began_at_s = monotonic_s()
    while True:
        connection = ReconnectingConnection(_with_heartbeat(url), client_properties={"connection_name": name})
        try:
            # The inner deadline is that of each later attempt, too: a frozen broker takes connections and says nothing.
            async with asyncio.timeout(2 * ATTEMPT_DEADLINE_S):
                await connection.connect(timeout=ATTEMPT_DEADLINE_S)
        except BROKER_ERRORS as error:
            await _close(connection)
            waited_s = monotonic_s() - began_at_s
            if waited_s >= startup_timeout_s:
                raise Misconfigured(
                    f"EVENLOAD_AMQP_URL: no broker answers at {redacted(url)} "
                    f"({words(error)}): start one there, or correct address, user and vhost"
                ) from None
            log.info("broker_awaited", address=redacted(url), cause=words(error))
            await asyncio.sleep(min(pause_s(waited_s), startup_timeout_s))
        except asyncio.CancelledError:
            await _close(connection)
            raise
        else:
            connection.watch(name, words)
            return connection


def _with_heartbeat(url: str) -> URL:
    parsed = URL(url)
    return parsed if "heartbeat" in parsed.query else parsed.update_query(heartbeat=HEARTBEAT_S)


async def _close(connection: ReconnectingConnection) -> None:
    """Let go of it, whatever it is doing: what is only dropped would go on connecting behind our back."""
    with contextlib.suppress(*BROKER_ERRORS):
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await connection.close()


def redacted(url: str) -> str:
    """The address without its password."""
    parsed = URL(url)
    return str(parsed.with_password("***")) if parsed.password else url


def words(error: BaseException | None) -> str:
    """What went wrong, for people."""
    if isinstance(error, InvalidFrameError):  # the library does not pass on what the broker said
        return "it refuses to open the vhost: there is none of that name, or the user has no rights in it"
    if error is None or isinstance(error, asyncio.CancelledError):
        return "it fell silent"
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return str(error) or type(error).__name__


@contextlib.asynccontextmanager
async def deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """Turn whatever a broker call raises, or its running past `seconds`, into `BrokerUnavailable`.

    aio-pika's own `timeout` arguments are no deadline while the broker is down.
    """
    try:
        async with asyncio.timeout(seconds):
            yield
    except BROKER_ERRORS as error:
        raise BrokerUnavailable(f"{what}: {words(error)}") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # The library cancels its own futures when a connection breaks: that is no cancellation of ours.
        raise BrokerUnavailable(f"{what}: the connection broke") from None
