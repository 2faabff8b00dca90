"""Sessions for who needs the broker at once, and says in one line why it cannot be had."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aio_pika.exceptions import AuthenticationError, ProbableAuthenticationError

from services.broker.address import BrokerAddress, is_distrust, refused
from services.broker.calls import BrokerEnded, words
from services.broker.session import Session, running
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, Misconfigured


@contextlib.asynccontextmanager
async def connected(url: str, name: str, startup_timeout_s: float) -> AsyncIterator[Session]:
    """A session that is connected, and comes back by itself after each loss.

    Keeps trying for `startup_timeout_s`, then raises `Misconfigured` with the address (without its password).
    """
    address = BrokerAddress(url)
    async with running(address, name) as session:
        await until_connected(session, startup_timeout_s)
        yield session


async def until_connected(session: Session, timeout_s: float, *, unanswered_s: float | None = None) -> None:
    """Wait until it is connected; raises `Misconfigured` where it is refused, or not answered, for `timeout_s`.

    With `unanswered_s`, raises `BrokerUnavailable` instead where nobody answers for so long, or nobody who refuses. A
    certificate that is not trusted is told at once, because no waiting cures that.
    """
    began_at_s = monotonic_s()
    while not session.connected.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(unanswered_s):
                await session.attempted.wait()
        session.attempted.clear()
        if session.connected.is_set():
            return
        cause = session.cause
        if cause is not None and is_distrust(cause):
            raise session.tls_fault or _unusable(session)
        if unanswered_s is not None and (cause is None or not is_refusal(cause)):
            why = session.tls_fault or words(cause)
            raise BrokerUnavailable(f"the broker at {session.address.text} cannot be had ({why})")
        if monotonic_s() - began_at_s >= timeout_s:
            raise session.tls_fault or _unusable(session)


def is_refusal(error: BaseException) -> bool:
    """Whether a broker answered, and does not want us: waiting may not help."""
    if isinstance(error, BrokerEnded):
        return error.is_refusal
    return isinstance(error, ProbableAuthenticationError | AuthenticationError)


def _unusable(session: Session) -> Misconfigured:
    place, cause = session.address.text, session.cause
    if cause is not None and is_refusal(cause):
        return refused(
            f"the broker at {place} answers, and refuses ({words(cause)})", "correct user, password and vhost"
        )
    if isinstance(cause, BrokerEnded):
        cure = "raise that limit, or end other connections" if "limit" in cause.said else "see the broker's log"
        return refused(f"the broker at {place} answers, and lets nobody in now ({words(cause)})", cure)
    return refused(
        f"no broker answers at {place} ({words(cause)})", "start one there, or correct address, user and vhost"
    )
