"""A right that the broker's user lacks, told by its name and with its cure."""

import contextlib
import re
from collections.abc import Iterator

from aio_pika.exceptions import ChannelClosed

from services.broker import topology
from services.broker.calls import words
from services.broker.session import Session
from services.errors import Misconfigured

_REFUSED = re.compile(r"access to (?P<what>\w+ '(?P<name>[^']*)') in vhost")


class RightLacking(Misconfigured):
    """The broker's user may not do what its service needs; `cause` says which right it lacks, without the cure."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            f"EVENLOAD_AMQP_URL: {cause}: grant it with `rabbitmqctl set_permissions`; `python -m "
            f"services.broker.topology <role>=<password>` prints what each role ({', '.join(topology.ROLES)}) needs"
        )


@contextlib.contextmanager
def needing(session: Session, right: str, read_of: str = "") -> Iterator[None]:
    """Turn the broker's 403 for a call in the block into `RightLacking`.

    `right` (configure, write, read) is what the call needs; where it binds, it needs to read from `read_of`, too. The
    broker's words differ between versions: all name the thing that is refused, not all the right.
    """
    try:
        yield
    except ChannelClosed as error:
        if not str(error).startswith("ACCESS_REFUSED"):
            raise
        found = _REFUSED.search(str(error))
        what = found["what"] if found else words(error)
        lacking = "read" if found and found["name"] == read_of else right
        raise RightLacking(
            f"user {session.url.user!r} lacks the {lacking} right on {what} in vhost {session.url.path[1:]!r}"
        ) from None
