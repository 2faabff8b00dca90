"""A substation and its charging sessions: pure, time comes in as a parameter."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.ledger.records import Claimed, Ending, Progress
from services.ledger.states import Reason, Status
from services.messages import Hint
from substations.sharing import share

Key = tuple[str, int]
"""A request at an attempt."""

REMEMBER_ENDED_S = 60.0
"""Far longer than any ledger reply may take: what ended is not started again by a late one."""


@dataclass(slots=True)
class Session:
    """One vehicle at a connector; energy in J, power in W."""

    claimed: Claimed
    delivered_j: int
    power_w: int = 0
    stop_asked: bool = False
    is_finished: bool = False
    """Nothing more is delivered; the connector is free once the ledger knows."""
    fraction_j: float = 0.0
    """Below 1 J, kept for the next tick: else short ticks at low power would never deliver anything."""

    @property
    def owed_j(self) -> int:
        """What is still to be delivered."""
        return self.claimed.energy_requested_j - self.delivered_j

    @property
    def outcome(self) -> tuple[Status, Reason]:
        """How it ends: whoever has all of its energy is completed, whatever else was asked."""
        if self.owed_j <= 0:
            return Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED
        return Status.STOPPED, Reason.REMOTE

    def deliver(self, session_seconds: float) -> int:
        """Charge for a time at the power set before; returns the energy delivered [J], never more than owed."""
        whole_j = math.floor(self.fraction_j + self.power_w * session_seconds)
        self.fraction_j += self.power_w * session_seconds - whole_j
        delivered_j = min(self.owed_j, whole_j)
        self.delivered_j += delivered_j
        return delivered_j


@dataclass(slots=True)
class Substation:
    """The state of one substation within one epoch."""

    id: str
    rated_w: int
    limit_w: int
    connectors: int
    bays: int
    epoch: int
    speed: float
    ticked_at_s: float
    sessions: dict[str, Session] = field(default_factory=dict)
    in_bays: list[Hint] = field(default_factory=list)
    """Assigned to us and waiting for the next free connector; their order is the ledger's."""
    claims_total: int = 0
    ends_by_reason: dict[str, int] = field(default_factory=lambda: {Reason.ENERGY_LIMIT_REACHED: 0})
    energy_total_j: int = 0
    sequence: int = 0
    _recently_ended: dict[Key, float] = field(default_factory=dict)

    @property
    def free_connectors(self) -> int:
        """Connectors that no session holds."""
        return self.connectors - len(self.sessions)

    def park(self, held: Sequence[Hint]) -> list[Hint]:
        """Fill the bays from `held`, what is assigned to us still, in its order; returns those that find none.

        Who stands in a bay already is not overtaken by who comes; who is not held any more leaves its bay.
        """
        standing = set(self.in_bays)
        ordered = sorted(held, key=lambda hint: hint not in standing)  # stable: else in the order of `held`
        self.in_bays = ordered[: self.bays]
        return ordered[self.bays :]

    def vacate(self, gone: Iterable[Hint]) -> None:
        """Empty the bays of those who were cancelled, expired or given back."""
        left = set(gone)
        self.in_bays = [hint for hint in self.in_bays if hint not in left]

    @property
    def power_w(self) -> int:
        """Power given to all sessions now."""
        return sum(session.power_w for session in self.sessions.values())

    @property
    def demand_w(self) -> int:
        """Power that the sessions would take without a limit; an ended one counts until the ledger knows its end."""
        return sum(session.claimed.power_max_w for session in self.sessions.values())

    def start(self, claimed: Claimed) -> bool:
        """Begin, or go on with, a session; its power comes with the next tick.

        Returns False for one that runs or ran here already, whoever asks again.
        """
        key = (claimed.request_id, claimed.attempt)
        if claimed.request_id in self.sessions or key in self._recently_ended:
            return False
        session = Session(claimed, claimed.energy_delivered_j)
        session.is_finished = session.owed_j <= 0
        self.sessions[claimed.request_id] = session
        self.claims_total = max(self.claims_total, claimed.claim_number)
        return True

    def tick(self, now_s: float) -> list[Ending]:
        """Deliver energy for the time since the last tick, then share the power anew; returns what has ended."""
        passed_s = max(0.0, now_s - self.ticked_at_s) * self.speed
        self.ticked_at_s = now_s
        for session in self.sessions.values():
            self.energy_total_j += session.deliver(passed_s)
        charging = []
        for session in self.sessions.values():
            if session.owed_j <= 0 or session.stop_asked:
                session.is_finished, session.power_w = True, 0
            else:
                charging.append(session)
        powers = share(self.limit_w, [session.claimed.power_max_w for session in charging])
        for session, power_w in zip(charging, powers, strict=True):
            session.power_w = power_w
        self._recently_ended = {
            key: at_s for key, at_s in self._recently_ended.items() if now_s - at_s < REMEMBER_ENDED_S
        }
        return [self._ending(session) for session in self.sessions.values() if session.is_finished]

    def finish(self, request_id: str, now_s: float, *, counts: bool) -> None:
        """Free the connector of a session whose end is known; it `counts` where the ledger has it as ended by us."""
        session = self.sessions.pop(request_id, None)
        if session is None:
            return
        self._recently_ended[request_id, session.claimed.attempt] = now_s
        if counts:
            _, reason = session.outcome
            self.ends_by_reason[reason] = self.ends_by_reason.get(reason, 0) + 1

    def stop(self, asked: Iterable[Key]) -> int:
        """Stop sessions at the next tick; returns how many were not asked before."""
        stopped = 0
        for request_id, attempt in asked:
            session = self.sessions.get(request_id)
            if session is not None and session.claimed.attempt == attempt and not session.stop_asked:
                session.stop_asked = True
                stopped += 1
        return stopped

    def progress(self) -> list[Progress]:
        """What each session has delivered so far."""
        return [
            Progress(one.claimed.request_id, one.claimed.attempt, self.id, self.epoch, one.delivered_j)
            for one in self.sessions.values()
        ]

    def adopt(self, charging: Iterable[Claimed]) -> int:
        """Start sessions that the ledger shows as ours and we did not know; returns how many."""
        return sum(self.start(claimed) for claimed in charging)

    def _ending(self, session: Session) -> Ending:
        claimed = session.claimed
        status, reason = session.outcome
        return Ending(
            claimed.request_id,
            claimed.attempt,
            self.id,
            self.epoch,
            status,
            reason,
            session.delivered_j,
        )
