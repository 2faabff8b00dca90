"""What the broker must have and allow before a service can work: exchanges, and rights, each told by name."""

import contextlib
import re
from collections.abc import Iterator

from aio_pika.exceptions import ChannelClosed, ChannelNotFoundEntity

from services.broker import topology
from services.broker.connection import ATTEMPT_DEADLINE_S, deadline, redacted, words
from services.broker.reconnecting import ReconnectingConnection
from services.errors import Misconfigured

_REFUSED = re.compile(r"access to (?P<what>\w+ '(?P<name>[^']*)') in vhost")


@contextlib.contextmanager
def needing(connection: ReconnectingConnection, right: str, read_of: str = "") -> Iterator[None]:
    """Turn the broker's 403 for a call in the block into `Misconfigured`, which names the right and the cure.

    `right` (configure, write, read) is what the call needs; where it binds, it needs to read from `read_of`, too. The
    broker's words differ between versions: all name the thing that is refused, not all the right.
    """
    try:
        yield
    except ChannelClosed as error:
        if not str(error).startswith("ACCESS_REFUSED"):
            raise
        refused = _REFUSED.search(str(error))
        what = refused["what"] if refused else words(error)
        lacking = "read" if refused and refused["name"] == read_of else right
        raise Misconfigured(
            f"EVENLOAD_AMQP_URL: user {connection.url.user!r} lacks the {lacking} right on {what} in vhost "
            f"{connection.url.path[1:]!r}: grant it with `rabbitmqctl set_permissions`; `python -m "
            f"services.broker.topology <role>=<password>` prints what each role ({', '.join(topology.ROLES)}) needs"
        ) from None


async def require_topology(connection: ReconnectingConnection, role: topology.Role) -> None:
    """See that all exchanges are there, and that the user may publish to those of its role; changes nothing.

    Raises `Misconfigured`, and `BrokerUnavailable` where the broker does not answer.
    """
    async with deadline(ATTEMPT_DEADLINE_S, "looking at the exchanges"):
        channel = await connection.channel(publisher_confirms=False)
        try:
            for exchange in topology.EXCHANGES:
                await channel.get_exchange(exchange)
        except ChannelNotFoundEntity as error:
            raise Misconfigured(
                f"EVENLOAD_AMQP_URL: the broker at {redacted(str(connection.url.with_query(None)))} is not set up for "
                f"Evenload ({words(error)}): name the vhost that is, or load there what "
                "`python -m services.broker.topology operator=<password>` prints"
            ) from None
        for name in role.publishes_to:
            target = await channel.get_exchange(name, ensure=False)
            # Taking away a binding that is not there asks for the rights, and does nothing.
            with needing(connection, "write", role.hears if role.hears != name else ""):
                await target.unbind(role.hears, "no such binding")
        await channel.close()
