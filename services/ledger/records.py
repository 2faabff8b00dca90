"""What goes into the ledger and comes out of it: frozen values in base units (W, J, ms since the epoch)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.ledger.states import Status, Transition
from services.messages import Hint


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A validated charge request on its way into the ledger."""

    request_id: str
    vehicle_id: str
    energy_requested_j: int
    power_max_w: int
    priority: int
    zone: str | None
    depart_by_ms: int | None
    """Departure as the client gave it, in the session's time."""
    departs_at_ms: int | None
    """The departure on the wall clock; nothing is claimed or charged after it."""
    wait_max_ms: int
    """Longest wait after acceptance, where no departure is earlier."""
    idempotency_key: str | None = None
    """The client's own name for this request: the same again is the same request."""
    body_hash: str | None = None
    """Of what the client asked under that key."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The ledger's answer to a new request: from here on it is not lost.

    `request_id` is another's than the one `asked` with where its idempotency key was used before; `body_hash` is
    then that request's.
    """

    asked: str
    request_id: str
    accepted_at_ms: int
    wait_until_ms: int
    body_hash: str | None


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """The ledger's answer to a new request that it did not write, or does not know to be written, and the cause."""

    asked: str
    cause: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The ledger's answer to a new request that a rule of the database forbids, by the database's own `code`."""

    asked: str
    code: str


@dataclass(frozen=True, slots=True)
class ListedRequest:
    """A line of the list of requests; `arrival` goes up with each."""

    arrival: int
    request_id: str
    vehicle_id: str
    status: Status
    substation: str | None
    attempt: int
    energy_requested_j: int
    energy_delivered_j: int
    accepted_at_ms: int


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """Everything the ledger says of one request."""

    request_id: str
    vehicle_id: str
    status: Status
    substation: str | None
    attempt: int
    priority: int
    zone: str | None
    power_max_w: int
    energy_requested_j: int
    energy_delivered_j: int
    depart_by_ms: int | None
    accepted_at_ms: int
    wait_until_ms: int
    position: int | None
    """Its place in the waiting room, from 1, among those who could take what it could; None unless it waits."""
    decision: Mapping[str, Any] | None
    history: tuple[Transition, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for a substation, with what a choice needs to know."""

    request_id: str
    attempt: int
    power_max_w: int
    zone: str | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """A choice to be written: compare-and-set from (accepted, attempt) to (assigned, attempt + 1)."""

    request_id: str
    attempt: int
    substation: str
    decision: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """What a reading already contains of the ledger: the numbers of the last claim and the last end in it."""

    substation: str
    epoch: int
    claims_total: int
    ends_total: int


@dataclass(frozen=True, slots=True)
class Unseen:
    """A request whose effect on a substation's load is not in its reading yet.

    `sign` is +1 where it comes on top (assigned, or claimed after the reading), −1 where it has ended since.
    """

    request_id: str
    attempt: int
    substation: str
    power_w: int
    sign: int


@dataclass(frozen=True, slots=True)
class Registration:
    """A substation that a process would host, as the grid file has it."""

    substation: str
    zone: str | None
    rated_w: int
    limit_w: int
    connectors: int
    bays: int
    metrics_url: str


@dataclass(frozen=True, slots=True)
class RegisteredSubstation:
    """A line of the registry; without a lease nobody charges there."""

    substation: str
    zone: str | None
    epoch: int
    metrics_url: str
    has_lease: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """A request that is ours to charge; `claim_number` counts within the epoch, at most 0 for a resumed one."""

    request_id: str
    attempt: int
    substation: str
    epoch: int
    claim_number: int
    power_max_w: int
    energy_requested_j: int
    energy_delivered_j: int
    energy_granted_j: int
    """Never deliver beyond it [J]: should the process die, so much counts as delivered."""
    departs_in_ms: int | None = None
    """Wall time until the vehicle leaves, by the database's clock at this answer."""
    stop_asked: bool = False


@dataclass(frozen=True, slots=True)
class Claims:
    """What became of hints: charging now, and still assigned to us, in the order of the waiting room."""

    claimed: tuple[Claimed, ...]
    held: tuple[Hint, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Energy delivered so far by a running session [J], and up to where it would go on before it is heard again."""

    request_id: str
    attempt: int
    substation: str
    epoch: int
    energy_delivered_j: int
    energy_wanted_j: int


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a session: its terminal state, why, and what was delivered [J]."""

    request_id: str
    attempt: int
    substation: str
    epoch: int
    status: Status
    reason: str
    energy_delivered_j: int


@dataclass(frozen=True, slots=True)
class Orders:
    """What holds for a substation: an operator's limit while it lasts, else its own [W]; whether it takes vehicles."""

    number: int
    """Goes up with every order."""
    limit_w: int
    operative: bool


@dataclass(frozen=True, slots=True)
class OrderState:
    """An operator's orders for a substation, and since when they are applied; times in ms of the database's clock."""

    substation: str
    own_limit_w: int
    asked_limit_w: int | None
    """None: its own."""
    until_ms: int | None
    """When the limit lapses; None: never."""
    operative: bool
    asked_at_ms: int | None
    """Of the last order; None: there never was one."""
    applied_at_ms: int | None
    """Since when the substation does as it was told; None: not yet."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a process tells of one substation that it holds, and renews its lease by."""

    substation: str
    epoch: int
    holder: str
    progress: tuple[Progress, ...]
    in_bays: tuple[Hint, ...]
    grant_s: int
    """Session time that a grant to an adopted session lasts at its most power."""
    applied: Orders | None = None
    """The orders by which the last tick was done; None where none was heard yet."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to a beat that renewed the lease: what the ledger thinks of that substation."""

    substation: str
    epoch: int
    assigned: tuple[Hint, ...]
    overdue: tuple[Hint, ...]
    """Those of `assigned` whose message should have come by now."""
    charging: tuple[Claimed, ...]
    """All that charge there in this epoch, known to the process or not."""
    orders: Orders


@dataclass(frozen=True, slots=True)
class Swept:
    """A row that the sweep moved: how it stands now, and why."""

    request_id: str
    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class Breach:
    """A promise that the ledger's rows break, and the row that shows it; there must never be one."""

    promise: str
    subject: str
    after_s: float
    """It counts once it has stood for so long: what somebody has yet to put right is none."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where vehicles charge."""

    substation: str
    zone: str | None
    connectors: int


@dataclass(frozen=True, slots=True)
class Queued:
    """A vehicle that charges, stands in a bay or waits; energy it is still owed [J], its most power [W]."""

    request_id: str
    substation: str | None
    zone: str | None
    owed_j: int
    power_max_w: int
    wait_left_ms: int
    """Until it gives up waiting."""
    departs_in_ms: int | None
    """Until its vehicle leaves."""


@dataclass(frozen=True, slots=True)
class PastSession:
    """A session that ended: what it got [J], the most it could take [W], and how long it took [wall ms]."""

    delivered_j: int
    power_max_w: int
    took_ms: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """Everything that an expected wait follows from; `in_bays` and `waiting` in the order of the waiting room."""

    places: tuple[Place, ...]
    charging: tuple[Queued, ...]
    in_bays: tuple[Queued, ...]
    waiting: tuple[Queued, ...]
    recent_ends: tuple[PastSession, ...]
