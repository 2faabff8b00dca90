"""One vehicle at a connector: what it wants, what it gets and how it ends; pure, time comes in as a parameter."""

import math
from dataclasses import dataclass

from services.ledger.records import Claimed
from services.ledger.states import Reason, Status
from substations.sharing import Wish

HOLD_S = 300.0
"""Session seconds that a session which was started or paused stays so at least: contactors and drivers dislike
flapping. Below it only an exceeded limit pauses, and only power that nobody else takes starts."""


@dataclass(slots=True)
class Session:
    """Energy in J, power in W, times as readings of the monotonic clock in s."""

    claimed: Claimed
    delivered_j: int
    granted_j: int
    """Nothing is delivered beyond it: should this process die, so much counts as delivered."""
    since_s: float
    """When it came, or was started or paused last."""
    departs_at_s: float | None = None
    power_w: int = 0
    is_running: bool = False
    held_until_s: float = -math.inf
    ran_before_s: float = 0.0
    """How long it has run, without the time since it was started last."""
    stop_asked: bool = False
    end: Reason | None = None
    """Why nothing more is delivered; the connector is free once the ledger knows."""
    fraction_j: float = 0.0
    """Below 1 J, kept for the next tick: else short ticks at low power would never deliver anything."""

    @property
    def owed_j(self) -> int:
        """What is still to be delivered."""
        return self.claimed.energy_requested_j - self.delivered_j

    @property
    def is_paused(self) -> bool:
        """It waits for its turn."""
        return not self.is_running and self.end is None

    @property
    def wanted_w(self) -> int:
        """Most power that the vehicle takes now: beyond 80 % it falls in a straight line, to 20 % of it at the end.

        A simplification: no battery is modelled, the energy asked for stands for the way to a full one.
        """
        most_w, asked_j = self.claimed.power_max_w, self.claimed.energy_requested_j
        owed_j = max(0, self.owed_j)
        if owed_j * 5 >= asked_j:
            return most_w
        return max(1, most_w * (asked_j + 20 * owed_j) // (5 * asked_j))

    @property
    def outcome(self) -> Status:
        """How it ends, once it has."""
        return Status.COMPLETED if self.end is Reason.ENERGY_LIMIT_REACHED else Status.STOPPED

    def deliver(self, from_s: float, until_s: float, speed: float) -> int:
        """Charge between two readings at the power set before, and not beyond the departure.

        Returns the energy delivered [J], never more than owed, nor beyond the grant.
        """
        if self.departs_at_s is not None:
            until_s = min(until_s, self.departs_at_s)
        charged_j = self.fraction_j + self.power_w * max(0.0, until_s - from_s) * speed
        whole_j = math.floor(charged_j)
        self.fraction_j = charged_j - whole_j
        delivered_j = max(0, min(self.owed_j, self.granted_j - self.delivered_j, whole_j))
        self.delivered_j += delivered_j
        return delivered_j

    def up_to_j(self, grant_s: float) -> int:
        """The grant it needs to go on for `grant_s` of session time at its most power [J]."""
        if self.end is not None:
            return self.delivered_j
        return min(self.claimed.energy_requested_j, self.delivered_j + math.ceil(self.claimed.power_max_w * grant_s))

    def judge(self, now_s: float) -> None:
        """End it where its time has come: whoever has all of its energy is completed, whatever else was asked."""
        if self.end is not None:
            return
        if self.owed_j <= 0:
            self.end = Reason.ENERGY_LIMIT_REACHED
        elif self.stop_asked:
            self.end = Reason.REMOTE
        elif self.departs_at_s is not None and now_s >= self.departs_at_s:
            self.end = Reason.EV_DISCONNECTED
        if self.end is not None:
            self.is_running, self.power_w = False, 0

    def wish(self, now_s: float, speed: float) -> Wish:
        """What it would take from now on; session time runs `speed` times faster than the clock."""
        laxity_s = math.inf
        if self.departs_at_s is not None:
            laxity_s = (self.departs_at_s - now_s) * speed - self.owed_j / self.claimed.power_max_w
        return Wish(
            self.claimed.request_id,
            self.claimed.claim_number,
            self.wanted_w,
            laxity_s,
            self.is_running,
            self.since_s,
            self.ran_before_s + (now_s - self.since_s if self.is_running else 0.0),
            is_held=now_s < self.held_until_s,
        )

    def give(self, power_w: int | None, now_s: float, speed: float) -> None:
        """Run with that power until the next tick; None pauses."""
        is_running = power_w is not None
        if is_running is not self.is_running:
            if self.is_running:
                self.ran_before_s += now_s - self.since_s
            self.is_running, self.since_s = is_running, now_s
            self.held_until_s = now_s + HOLD_S / speed
        self.power_w = power_w or 0
