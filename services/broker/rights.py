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
_TOPIC_REFUSED = re.compile(r"access to (?P<what>topic '.*' in exchange '(?P<name>[^']*)') in vhost")


class RightLacking(Misconfigured):
    """The broker's user may not do what its service needs; `cause` says which right it lacks, without the cure."""

    def __init__(self, cause: str, *, is_of_topic: bool = False) -> None:
        self.cause = cause
        self.is_of_topic = is_of_topic
        """Whether the user may use the exchange, and not this routing key: a right that no role of ours limits."""
        self.cure = (
            "let `rabbitmqctl set_topic_permissions` allow that routing key, or clear the user's topic permissions"
            if is_of_topic
            else "grant it with `rabbitmqctl set_permissions`; `python -m services.broker.topology <role>=<password>` "
            f"prints what each role ({', '.join(topology.ROLES)}) needs"
        )
        super().__init__(f"EVENLOAD_AMQP_URL: {cause}: {self.cure}")


@contextlib.contextmanager
def needing(session: Session, right: str, read_of: str = "") -> Iterator[None]:
    """Turn the broker's 403 for a call in the block into `RightLacking`; see `right_lacking`."""
    try:
        yield
    except ChannelClosed as error:
        lacking = right_lacking(session, error, right, read_of)
        if lacking is None:
            raise
        raise lacking from None


def right_lacking(session: Session, error: Exception, right: str, read_of: str = "") -> RightLacking | None:
    """The right whose lack made a call fail; None where it failed for something else.

    `right` (configure, write, read) is what the call needs; where it binds, it needs to read from `read_of`, too. The
    broker's words differ between versions: all name the thing that is refused, not all the right.
    """
    said = str(error)
    # A queue that somebody else consumes alone is refused by the same code.
    if not said.startswith("ACCESS_REFUSED") or "in exclusive use" in said:
        return None
    topic = _TOPIC_REFUSED.search(said)
    found = topic or _REFUSED.search(said)
    what = found["what"] if found else words(error)
    lacking = "read" if found and found["name"] == read_of else right
    return RightLacking(
        f"user {session.url.user!r} lacks the {lacking} right on {what} in vhost {session.url.path[1:]!r}",
        is_of_topic=topic is not None,
    )
