"""What is known of a run: what clients heard, what witnesses saw, how the ledger ended."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from services.ledger.states import Transition


class Told(NamedTuple):
    """A 202 that a client got."""

    key: str
    request_id: str
    energy_j: int
    at_s: float


class GaveUp(NamedTuple):
    """A client that stopped asking before it was answered; its request may be in the ledger all the same."""

    key: str
    at_s: float


class Withdrawing(NamedTuple):
    """A client's DELETE, noted before it was sent: its answer may never come."""

    request_id: str
    at_s: float


class Withdrawn(NamedTuple):
    """An answer to a client's DELETE that named the request's state."""

    request_id: str
    status: str
    at_s: float


class Holder(NamedTuple):
    """Who charged: one process's tenure of one substation."""

    substation: str
    epoch: int
    writer: str


class Start(NamedTuple):
    """A session's first tick."""

    request_id: str
    attempt: int
    holder: Holder
    at_s: float


class Piece(NamedTuple):
    """Energy delivered between two ticks."""

    request_id: str
    attempt: int
    holder: Holder
    from_s: float
    to_s: float
    energy_j: int


class Busy(NamedTuple):
    """A time in which a holder charged, without a gap."""

    holder: Holder
    from_s: float
    to_s: float


class Row(NamedTuple):
    """A request as the ledger ended with it."""

    status: str
    energy_requested_j: int
    energy_delivered_j: int
    power_max_w: int
    interruptions: int
    idempotency_key: str | None
    vehicle_id: str


class Evidence(NamedTuple):
    """All that is known of some requests: every rule here is about one of them."""

    told: Sequence[Told]
    withdrawing: Sequence[Withdrawing]
    withdrawn: Sequence[Withdrawn]
    starts: Sequence[Start]
    pieces: Sequence[Piece]
    rows: Mapping[str, Row]
    histories: Mapping[str, Sequence[Transition]]
    told_by_key: Mapping[str, str]
    """The id that clients were told under each key of these requests."""
    given_up: Collection[str]
    """Those of their keys whose client stopped asking."""
    terms: "Terms"


class Terms(NamedTuple):
    """What holds for every request of a run."""

    grant_s: int
    """Session time for which a grant lasts."""
    lease_s: float
    wall_offset_s: float
    """Wall clock − monotonic clock: the largest of the run, so that no step of the wall clock makes a finding."""
