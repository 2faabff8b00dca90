"""Sessions for who needs the broker at once, and says in one line why it cannot be had."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aio_pika.exceptions import AuthenticationError, ProbableAuthenticationError

from services.broker.address import BrokerAddress, refused, tls_fault
from services.broker.calls import is_vhost_refused, words
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

    With `unanswered_s`, raises `BrokerUnavailable` instead where nobody answers for so long. What no waiting cures (no
    trust between the two ends) is raised at once.
    """
    began_at_s = monotonic_s()
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(unanswered_s):
                await session.attempted.wait()
        session.attempted.clear()
        if session.connected.is_set():
            return
        has_refused = session.cause is not None and is_refusal(session.cause)
        if session.cause is not None and not has_refused:
            fault = await tls_fault(session.address, session.cause)
            if fault is not None:
                raise fault
        waited_s = monotonic_s() - began_at_s
        if unanswered_s is not None and not has_refused:
            raise BrokerUnavailable(f"no broker answers at {session.address.text}")
        if waited_s >= timeout_s:
            raise _unusable(session, has_refused=has_refused)


def is_refusal(error: BaseException) -> bool:
    """Whether a broker answered, and does not want us: waiting may not help."""
    return isinstance(error, ProbableAuthenticationError | AuthenticationError) or is_vhost_refused(error)


def _unusable(session: Session, *, has_refused: bool) -> Misconfigured:
    place, cause = session.address.text, words(session.cause)
    if has_refused:
        return refused(f"the broker at {place} answers, and refuses ({cause})", "correct user, password and vhost")
    return refused(f"no broker answers at {place} ({cause})", "start one there, or correct address, user and vhost")
