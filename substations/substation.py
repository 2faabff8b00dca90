"""A substation and its charging sessions: pure, time comes in as a parameter."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from services.ledger.records import Beat, Claimed, Ending, Heartbeat, Orders, Progress
from services.ledger.states import Reason
from services.messages import Hint
from substations.session import Session
from substations.sharing import POLICIES, Policy, share

Key = tuple[str, int]
"""A request at an attempt."""

REMEMBER_ENDED_S = 60.0
"""Far longer than any ledger reply may take: what ended is not started again by a late one."""


@dataclass(slots=True)
class Substation:
    """The state of one substation; what it holds, it holds within one epoch, and while its lease runs."""

    id: str
    rated_w: int
    limit_w: int
    connectors: int
    bays: int
    speed: float
    ticked_at_s: float
    epoch: int = 0
    """Our tenure; 0 while the substation is not ours."""
    fence_at_s: float = -math.inf
    """From then on nothing is delivered, until the lease is renewed."""
    orders: Orders | None = None
    """The last ones heard; the next tick is done by them."""
    applied: Orders | None = None
    """The ones by which the last tick was done."""
    grant_s: int = 0
    """Session time that a session may go on without hearing from the ledger."""
    floor_w: int = 0
    """Least power of a running session; who wants less gets what it wants."""
    sharing: Policy = POLICIES["max-min"]
    sessions: dict[str, Session] = field(default_factory=dict)
    in_bays: list[Hint] = field(default_factory=list)
    """Assigned to us and waiting for the next free connector; their order is the ledger's."""
    claims_total: int = 0
    ends_by_reason: dict[str, int] = field(default_factory=lambda: {Reason.ENERGY_LIMIT_REACHED: 0})
    energy_total_j: int = 0
    renewals_total: int = 0
    fenced_total: int = 0
    sequence: int = 0
    stands_still: bool = True
    """Whether the last tick was behind the fence."""
    _recently_ended: dict[Key, float] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        """Whether the substation is ours, as far as we know."""
        return self.epoch > 0

    def is_fenced(self, now_s: float) -> bool:
        """Whether our lease may have run out, so that somebody else may charge here."""
        return now_s >= self.fence_at_s

    def begin(self, epoch: int) -> None:
        """Begin a tenure; it is fenced until its lease is renewed."""
        self.lose()
        self.epoch = epoch

    def lose(self) -> None:
        """Drop everything: the substation is somebody else's, or nobody's."""
        self.epoch, self.fence_at_s = 0, -math.inf
        self.sessions, self.in_bays, self._recently_ended = {}, [], {}
        self.claims_total, self.ends_by_reason = 0, {Reason.ENERGY_LIMIT_REACHED: 0}
        self.orders = self.applied = None
        self.stands_still = True

    def renew(self, sent_at_s: float, lease_s: float) -> None:
        """Our lease was renewed by a beat sent at `sent_at_s`: an observer may have seen it since then."""
        self.fence_at_s = max(self.fence_at_s, sent_at_s + lease_s)
        self.renewals_total += 1

    @property
    def is_operative(self) -> bool:
        """Whether it takes vehicles; one that does not lets its sessions finish."""
        return self.orders is None or self.orders.operative

    @property
    def usable_connectors(self) -> int:
        """Connectors at which it lets vehicles charge: the limit has a floor's power for each; none while drained."""
        if not self.is_operative:
            return 0
        limit_w = self.limit_w if self.orders is None else min(self.limit_w, self.orders.limit_w)
        return min(self.connectors, limit_w // max(1, self.floor_w))

    @property
    def free_connectors(self) -> int:
        """Usable connectors that no session holds."""
        return max(0, self.usable_connectors - len(self.sessions))

    def park(self, held: Sequence[Hint]) -> list[Hint]:
        """Fill the bays from `held`, what is assigned to us still, in its order; returns those that find none.

        Where no connector is usable, there are no bays either: perhaps one is usable elsewhere. Who stands in a bay
        already is not overtaken by who comes; who is not held any more leaves its bay.
        """
        standing = set(self.in_bays)
        ordered = sorted(held, key=lambda hint: hint not in standing)  # stable: else in the order of `held`
        bays = self.bays if self.usable_connectors > 0 else 0
        self.in_bays = ordered[:bays]
        return ordered[bays:]

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
        """The most that the sessions may take without a limit; an ended one counts until the ledger knows its end.

        Taper does not lower it: so it is what the ledger's rows add up to, from the claim to the end, and a balancer
        may subtract a row that has ended since.
        """
        return sum(session.claimed.power_max_w for session in self.sessions.values())

    def start(self, claimed: Claimed, now_s: float) -> bool:
        """Begin, or go on with, a session; its power comes with the next tick.

        Its departure is counted from `now_s` on, so that no step of a wall clock moves it. Returns False for one
        that runs or ran here already, whoever asks again, and for one of another tenure.
        """
        key = (claimed.request_id, claimed.attempt)
        if claimed.epoch != self.epoch or claimed.request_id in self.sessions or key in self._recently_ended:
            return False
        departs_in_ms = claimed.departs_in_ms
        departs_at_s = None if departs_in_ms is None else now_s + departs_in_ms / 1000
        self.sessions[claimed.request_id] = Session(
            claimed, claimed.energy_delivered_j, claimed.energy_granted_j, now_s, departs_at_s
        )
        self.claims_total = max(self.claims_total, claimed.claim_number)
        return True

    def tick(self, now_s: float) -> list[Ending]:
        """Deliver energy for the time since the last tick, then share the power anew; returns what has ended.

        Behind the fence nothing is delivered, for none of the time since the last tick: somebody else may have begun.
        """
        if self.orders is not None:
            self.limit_w = self.orders.limit_w
        self.applied = self.orders
        if self.is_fenced(now_s):
            self._stand_still(now_s)
            return self._endings()
        self.stands_still = False
        for session in self.sessions.values():
            self.energy_total_j += session.deliver(self.ticked_at_s, now_s, self.speed)
            session.judge(now_s)
        self.ticked_at_s = now_s
        charging = [session for session in self.sessions.values() if session.end is None]
        wishes = [session.wish(now_s, self.speed) for session in charging]
        powers_w = share(self.limit_w, self.floor_w, wishes, self.sharing)
        for session in charging:
            session.give(powers_w.get(session.claimed.request_id), now_s, self.speed)
        self._recently_ended = {
            key: at_s for key, at_s in self._recently_ended.items() if now_s - at_s < REMEMBER_ENDED_S
        }
        return self._endings()

    def _stand_still(self, now_s: float) -> None:
        self.fenced_total += not self.stands_still
        self.stands_still = True
        self.ticked_at_s = now_s
        for session in self.sessions.values():
            session.judge(now_s)  # whoever leaves, or was asked to stop, need not wait for a lease
            if session.end is None:
                session.give(None, now_s, self.speed)

    def _endings(self) -> list[Ending]:
        return [self._ending(session, session.end) for session in self.sessions.values() if session.end is not None]

    def finish(self, ended: Ending, now_s: float, *, counts: bool) -> None:
        """Free the connector of a session whose end is known; it `counts` where the ledger has it as ended by us."""
        session = self.sessions.get(ended.request_id)
        if session is None or (session.claimed.attempt, session.claimed.epoch) != (ended.attempt, ended.epoch):
            return
        del self.sessions[ended.request_id]
        self._recently_ended[ended.request_id, ended.attempt] = now_s
        if counts and session.end is not None:
            self.ends_by_reason[session.end] = self.ends_by_reason.get(session.end, 0) + 1

    def beat(self, holder: str) -> Beat:
        """What a heartbeat tells of it: what each session has delivered and needs next, and who stands in a bay."""
        return Beat(
            self.id, self.epoch, holder, tuple(self.progress()), tuple(self.in_bays), self.grant_s, self.applied
        )

    def progress(self) -> list[Progress]:
        """What each session has delivered so far, and the grant it needs next."""
        return [
            Progress(
                one.claimed.request_id,
                one.claimed.attempt,
                self.id,
                self.epoch,
                one.delivered_j,
                one.up_to_j(self.grant_s),
            )
            for one in self.sessions.values()
        ]

    def adopt(self, charging: Iterable[Claimed], now_s: float) -> int:
        """Start sessions that the ledger shows as ours and we did not know; returns how many."""
        return sum(self.start(claimed, now_s) for claimed in charging)

    def stop(self, asked: Iterable[Key]) -> int:
        """Stop sessions at the next tick; returns how many were not asked before."""
        stopped = 0
        for key in asked:
            session = self._session(key)
            if session is not None and not session.stop_asked:
                session.stop_asked = True
                stopped += 1
        return stopped

    def hear(self, answer: Heartbeat, told: Beat, sent_at_s: float) -> tuple[int, int]:
        """Take over what the ledger thinks of sessions and bays, in answer to what was `told` at `sent_at_s`.

        Sessions get their grants; unknown ones are adopted, asked-for stops are done at the next tick, and who is not
        assigned here any more leaves its bay. Returns how many were adopted and newly asked to stop.
        """
        self.orders = answer.orders
        adopted = self.adopt(answer.charging, sent_at_s)
        stopped = self.stop((row.request_id, row.attempt) for row in answer.charging if row.stop_asked)
        for row in answer.charging:
            session = self._session((row.request_id, row.attempt))
            if session is not None:
                session.granted_j = max(session.granted_j, row.energy_granted_j)
        self.vacate(set(told.in_bays) - set(answer.assigned))
        return adopted, stopped

    def _session(self, key: Key) -> Session | None:
        session = self.sessions.get(key[0])
        return session if session is not None and session.claimed.attempt == key[1] else None

    def _ending(self, session: Session, reason: Reason) -> Ending:
        claimed = session.claimed
        return Ending(
            claimed.request_id,
            claimed.attempt,
            self.id,
            self.epoch,
            session.outcome,
            reason,
            session.delivered_j,
        )
