"""The states of a charge request, and which may follow which: pure, and what every history is judged by."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """Where a request is on its way; the last five are terminal."""

    ACCEPTED = "accepted"
    ASSIGNED = "assigned"
    CHARGING = "charging"
    COMPLETED = "completed"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


TERMINAL = frozenset({Status.COMPLETED, Status.STOPPED, Status.CANCELLED, Status.EXPIRED, Status.FAILED})

FOLLOWERS: dict[Status, frozenset[Status]] = {
    Status.ACCEPTED: frozenset({Status.ASSIGNED, Status.CANCELLED, Status.EXPIRED, Status.STOPPED}),
    Status.ASSIGNED: frozenset({Status.CHARGING, Status.ACCEPTED, Status.CANCELLED, Status.EXPIRED, Status.STOPPED}),
    # charging → charging is a takeover: the same substation goes on in a new epoch.
    Status.CHARGING: frozenset({Status.CHARGING, Status.ACCEPTED, Status.COMPLETED, Status.STOPPED, Status.FAILED}),
    **{terminal: frozenset() for terminal in TERMINAL},
}


INTERRUPTIONS_MAX = 10
"""So often a session may lose its substation and go on; after the next time it has failed."""

RETURNS_MAX = 10
"""So often a request that comes back from a substation has its whole wait before it again. Then the wait runs on."""


class Reason(StrEnum):
    """Why a transition happened, as the history tells it."""

    SUBMITTED = "submitted"
    DISPATCHED = "dispatched"
    CLAIMED = "claimed"
    RESUMED = "resumed"
    DECLINED = "declined"
    DRAINED = "drained"
    UNROUTABLE = "unroutable"
    """No balancer gives a request back with it any more; the histories of earlier ones hold it."""
    UNCLAIMED = "unclaimed"
    SUBSTATION_LOST = "substation_lost"
    INTERRUPTED_TOO_OFTEN = "interrupted_too_often"
    WAITED_TOO_LONG = "waited_too_long"
    REMOTE = "Remote"
    """OCPP's word for an end that somebody asked for."""
    ENERGY_LIMIT_REACHED = "EnergyLimitReached"
    """OCPP's word for a session that delivered what was asked for."""
    EV_DISCONNECTED = "EVDisconnected"
    """OCPP's word for a vehicle that left, here at its departure."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One line of a request's history; `at_ms` is the database's wall clock."""

    at_ms: int
    status: Status
    substation: str | None
    attempt: int
    epoch: int | None
    reason: str


def faults(history: Sequence[Transition]) -> list[str]:
    """What is wrong with a history, in words; empty where the promises hold.

    A sound history begins with `accepted`, follows the arrows, raises `attempt` with every assignment and only
    there, charges only where it was assigned, and has nothing after its end.
    """
    if not history:
        return ["the history is empty"]
    found: list[str] = []
    if history[0].status is not Status.ACCEPTED or history[0].attempt != 0:
        found.append(f"it begins with {history[0].status} at attempt {history[0].attempt}")
    for before, after in itertools.pairwise(history):
        step = f"{before.status} → {after.status}"
        if after.status not in FOLLOWERS[before.status]:
            found.append(f"{step} is no transition")
        raised = 1 if after.status is Status.ASSIGNED else 0
        if after.attempt != before.attempt + raised:
            found.append(f"{step}: attempt went from {before.attempt} to {after.attempt}")
        if after.status is Status.CHARGING and after.substation != before.substation:
            found.append(f"{step}: {before.substation} was assigned, {after.substation} charges")
        if before.status is after.status is Status.CHARGING and (after.epoch or 0) <= (before.epoch or 0):
            found.append(f"{step}: epoch went from {before.epoch} to {after.epoch}")
    return found


def ended_once(history: Sequence[Transition]) -> bool:
    """Whether the history is sound and its last line, and only that, is terminal."""
    return not faults(history) and history[-1].status in TERMINAL
