"""Connections to the broker: named for its console, with heartbeats, reconnecting with jitter."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import aio_pika
from aio_pika.abc import AbstractRobustConnection
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, InvalidFrameError
from yarl import URL

from services.broker import topology
from services.broker.channels import DeadlineConnection
from services.errors import BrokerUnavailable, Misconfigured
from services.logs import get_logger

log = get_logger(__name__)

HEARTBEAT_S = 10
ATTEMPT_DEADLINE_S = 10.0
RETRY_PAUSE_S = 0.5

BROKER_ERRORS = (AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError)
"""What a broker call may raise; a channel that closed under us raises `ChannelInvalidStateError`, a RuntimeError."""


@contextlib.asynccontextmanager
async def connected(url: str, name: str, startup_timeout_s: float) -> AsyncIterator[AbstractRobustConnection]:
    """A robust connection that the console shows as `name`.

    Keeps trying for `startup_timeout_s`, then raises `Misconfigured` with the address (without its password).
    """
    connection = await _first_connection(url, name, startup_timeout_s)
    try:
        yield connection
    finally:
        with contextlib.suppress(*BROKER_ERRORS):
            async with asyncio.timeout(2):
                await connection.close()


async def _first_connection(url: str, name: str, startup_timeout_s: float) -> AbstractRobustConnection:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + startup_timeout_s
    while True:
        try:
            async with asyncio.timeout(ATTEMPT_DEADLINE_S):
                return await aio_pika.connect_robust(
                    URL(url).update_query(
                        heartbeat=HEARTBEAT_S,
                        # Jitter, or every process comes back at the same moment after a broker's restart.
                        reconnect_interval=f"{random.uniform(0.5, 1.5):.2f}",  # noqa: S311
                    ),
                    client_properties={"connection_name": name},
                    connection_class=DeadlineConnection,
                )
        except BROKER_ERRORS as error:
            if loop.time() >= give_up_at:
                raise Misconfigured(
                    f"EVENLOAD_AMQP_URL: no broker answers at {redacted(url)} "
                    f"({_words(error)}): start one there, or correct address, user and vhost"
                ) from None
            log.info("broker_awaited", address=redacted(url), cause=_words(error))
            await asyncio.sleep(RETRY_PAUSE_S)


async def require_topology(connection: AbstractRobustConnection, url: str) -> None:
    """Raise `Misconfigured` where the vhost lacks what every service publishes to; raises `BrokerUnavailable`."""
    async with deadline(ATTEMPT_DEADLINE_S, "looking at the exchanges"):
        channel = await connection.channel(publisher_confirms=False)
        try:
            for exchange in topology.EXCHANGES:
                await channel.get_exchange(exchange)
        except ChannelNotFoundEntity as error:
            raise Misconfigured(
                f"EVENLOAD_AMQP_URL: the broker at {redacted(url)} is not set up for Evenload ({_words(error)}): name "
                "the vhost that is, or load there what `python -m services.broker.topology operator=<password>` prints"
            ) from None
        await channel.close()


def redacted(url: str) -> str:
    """The address without its password."""
    parsed = URL(url)
    return str(parsed.with_password("***")) if parsed.password else url


def _words(error: BaseException) -> str:
    if isinstance(error, InvalidFrameError):  # the library does not pass on what the broker said
        return "it refuses to open the vhost: there is none of that name, or the user has no rights in it"
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
        raise BrokerUnavailable(f"{what}: {_words(error)}") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # The library cancels its own futures when a connection breaks: that is no cancellation of ours.
        raise BrokerUnavailable(f"{what}: the connection broke") from None
