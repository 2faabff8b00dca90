"""Holds one run of the protocol's model against the promises, all along and at its end.

It trusts no service: it sees every tick through the witness, every commit through the ledger's history, and knows the
true time of both. A reading of a process's clock is dated by that clock's own rate.
"""

import collections
import math
from dataclasses import dataclass, field
from functools import partial

from harness.protocol.processes import GRANT_S, POWER_W

from services.ledger import statements
from services.ledger.intake import WITHDRAW
from services.ledger.states import TERMINAL, Reason, Status, Transition, faults
from services.ledger.sweeping import AUDIT_NEWEST_TRANSITIONS
from services.ledger.tenancy import BEAT

ROUNDING_S = 1e-6
GRANT_J = GRANT_S * POWER_W
LOSSES = ("take", "lose", "lose_orphans")
SENT_BACK = (Reason.SUBSTATION_LOST, Reason.UNCLAIMED, Reason.DECLINED)
BEATS_TO_STOP = 2
"""A process begins a beat when the one before was answered, or so long unanswered that its lease is over."""


class Violation(AssertionError):
    """A promise was broken."""


@dataclass
class _Charged:
    """When energy flowed, in true time, by whom; pieces without a gap are one."""

    pieces: list = field(default_factory=list)

    def add(self, who, from_s, to_s):
        """Returns somebody else who charged in that time too."""
        last = self.pieces[-1] if self.pieces else None
        if last is not None and last[0] == who and abs(last[2] - from_s) < ROUNDING_S:
            last[2] = to_s
        else:
            self.pieces.append([who, from_s, to_s])
        for other, began_s, ended_s in self.pieces:
            if other != who and min(to_s, ended_s) - max(from_s, began_s) > ROUNDING_S:
                return other
        return None


class Judge:
    """What has been seen so far; every method raises `Violation`."""

    def __init__(self, world):
        self._world = world
        self._ledger = world.ledger
        self._witnessed_j = collections.Counter()
        self._losses = collections.Counter()
        self._by_request = collections.defaultdict(_Charged)
        self._by_substation = collections.defaultdict(_Charged)
        self._starts = set()
        self._claimed_at_s = {}
        self._stopped_at_s = {}
        self._beats_after_stop = {}
        self._must_stand_since_s = {}
        self.histories = collections.defaultdict(list)
        self._last_transition = 0
        self._breaches_since_s = {}
        world.ledger.judge = self

    def _broken(self, promise, subject):
        raise Violation(f"{promise}: {subject} at {self._world.timeline.now_s:.3f} s")

    # --- what the processes do -----------------------------------------------------------------------------------

    def see_tick(self, process, substation):
        if substation.power_w > substation.limit_w:
            self._broken("4, power above the limit", f"{process.name}: {substation.power_w} W")
        if len(substation.sessions) > substation.connectors:
            self._broken("4, more sessions than connectors", f"{process.name}: {sorted(substation.sessions)}")

    def see(self, process, substation, key, event):
        request_id, attempt, epoch = key
        match event["event"]:
            case "start":
                self._world.note(process.name, "START", request_id, attempt, epoch)
                self._see_start(process, (substation.id, *key), process.clock.true_s(event["at_s"]))
            case "energy":
                from_s, to_s = process.clock.true_s(event["from_s"]), process.clock.true_s(event["to_s"])
                self._witnessed_j[request_id] += event["energy_j"]
                who = (process.name, substation.id, epoch)
                other = self._by_request[request_id].add((*who, attempt), from_s, to_s)
                if other is not None:
                    self._broken("2, charged twice at once", f"{request_id} by {who} and {other}")
                other = self._by_substation[substation.id].add(who, from_s, to_s)
                if other is not None:
                    self._broken("2, two tenures charge at once", f"{who} and {other}")
                if from_s > self._must_stand_since_s.get((substation.id, *key), math.inf) + ROUNDING_S:
                    self._broken("7, a stop is not heard within two beats", f"{request_id} by {who}")
            case "stop":
                self._world.note(process.name, "STOP", request_id, attempt, epoch)

    def _see_start(self, process, tenure, at_s):
        claimed_at_s = self._claimed_at_s.get(tenure)
        if claimed_at_s is None or claimed_at_s > at_s + ROUNDING_S:
            self._broken("2, started without a claim", f"{process.name}: {tenure}")
        if tenure in self._starts:
            self._broken("2, started twice in one epoch", f"{process.name}: {tenure}")
        self._starts.add(tenure)

    # --- what the ledger commits -----------------------------------------------------------------------------------

    def before_commit(self, operation):
        """What a tenure's end may touch: the leases, and who charges under which."""
        if operation.name not in LOSSES:
            return None
        leases = {one: lease for one, *lease in self._ledger.rows("SELECT id, epoch, released FROM substation")}
        charging = self._ledger.rows("SELECT id, substation FROM request WHERE status = 'charging'")
        return leases, dict(charging)

    def after_commit(self, operation, before, answer, sent_at_s):
        lost = self._lost(operation, *before) if before else set()
        if operation is WITHDRAW:
            self._note_stops()
        elif operation is BEAT:
            self._count_beats({(one["substation"], one["epoch"]) for one in answer}, sent_at_s)
        rows = self._ledger.rows(
            "SELECT t.number, t.request_id, t.at_ms, t.status, t.substation, t.attempt, t.epoch, t.reason, "
            "q.wait_until_ms, q.departs_at_ms, q.wait_max_ms "
            "FROM transition AS t JOIN request AS q ON q.id = t.request_id WHERE t.number > ?",
            self._last_transition,
        )
        for number, request_id, at_ms, status, substation, attempt, epoch, reason, *waits in rows:
            self._last_transition = number
            line = Transition(at_ms, Status(status), substation, attempt, epoch, reason)
            self.histories[request_id].append(line)
            self._world.note("ledger", operation.name, request_id, status, substation, attempt, epoch, reason)
            if status == Status.CHARGING:
                self._claimed_at_s[substation, request_id, attempt, epoch] = self._world.timeline.now_s
            self._losses[request_id] += request_id in lost
            is_loss = operation.name in LOSSES or reason == Reason.UNCLAIMED
            if status == Status.ACCEPTED and is_loss and reason in SENT_BACK:
                self._must_wait_anew(request_id, *waits)

    def _note_stops(self):
        asked = "SELECT substation, id, attempt, epoch FROM request WHERE status = 'charging' AND stop_asked = 1"
        for session in self._ledger.rows(asked):
            self._beats_after_stop.setdefault(session, 0)
            self._stopped_at_s.setdefault(session, self._world.timeline.now_s)

    def _count_beats(self, renewed, sent_at_s):
        """The first beat that is sent after a stop tells the process of it.

        If its answer were lost, the lease would be over before the second one. A beat that was sent before the stop and
        arrived late tells nothing, because its process does not wait for the answer any more.
        """
        for session, stopped_at_s in self._stopped_at_s.items():
            if (session[0], session[-1]) in renewed and sent_at_s >= stopped_at_s:
                self._beats_after_stop[session] += 1
                if self._beats_after_stop[session] == BEATS_TO_STOP:
                    self._must_stand_since_s[session] = self._world.timeline.now_s

    def _lost(self, operation, leases, charging):
        """The requests that charged under a lease which is over now; its holder must be behind its fence."""
        unreleased = {one: epoch for one, (epoch, is_released) in leases.items() if not is_released}
        over = {
            one
            for one, epoch in self._ledger.rows("SELECT id, epoch FROM substation")
            if unreleased.get(one, epoch) != epoch
        }
        for process in self._world.living(self._world.substations):
            for one in over & process.hosted:
                held = process.workers[one].substation
                if held.epoch == unreleased[one] and process.clock.reading_s() < held.fence_at_s:
                    self._broken(f"2, {operation.name} before the fence", f"{one} of {process.name}")
        return {request_id for request_id, one in charging.items() if one in over}

    def _must_wait_anew(self, request_id, wait_until_ms, departs_at_ms, wait_max_ms):
        whole_ms = self._ledger.now_ms() + wait_max_ms
        if wait_until_ms < min(whole_ms, departs_at_ms or whole_ms):
            self._broken("6, a loss shortens the wait", request_id)

    def audit(self):
        """The balancers' own audit, and what may be broken for a while only."""
        now_s = self._world.timeline.now_s
        found = {
            (row["promise"], row["subject"], self._attempt(row["subject"])): row["after_s"]
            for row in self._ledger.transaction().execute(statements.AUDIT, newest=AUDIT_NEWEST_TRANSITIONS)
        }
        self._breaches_since_s = {one: self._breaches_since_s.get(one, now_s) for one in found}
        watched_since_s = self._world.faults.watched_since_s()
        for one, after_s in found.items():
            since_s = self._breaches_since_s[one]
            if now_s - (max(since_s, watched_since_s) if after_s else since_s) >= after_s:
                self._broken(f"audit, {one[0]}", one[1])

    def _attempt(self, request_id):
        """A request that was sent on and came to nothing again is not the same matter."""
        history = self.histories.get(request_id)
        return history[-1].attempt if history else None

    # --- the end -----------------------------------------------------------------------------------------------------

    def at_rest(self):
        """Whether every request has ended."""
        return all(history[-1].status in TERMINAL for history in self.histories.values())

    def conclude(self, accepted):
        rows = self._ledger.rows("SELECT id, status, energy_requested_j, energy_delivered_j FROM request ORDER BY id")
        for missing in sorted(accepted - {row[0] for row in rows}):
            self._broken("1, an accepted request is gone", missing)
        for request_id, status, requested_j, delivered_j in rows:
            broken, history = partial(self._broken, subject=request_id), self.histories[request_id]
            for fault in faults(history):
                broken(f"history, {fault}")
            if status not in TERMINAL or history[-1].status != status:
                broken(f"1, it never ends: {status}")
            witnessed_j = self._witnessed_j[request_id]
            if not witnessed_j <= delivered_j <= requested_j:
                broken(f"3, witnessed {witnessed_j} ≤ ledger {delivered_j} ≤ requested {requested_j} J")
            if delivered_j - witnessed_j > GRANT_J * self._losses[request_id]:
                broken(f"3, {delivered_j - witnessed_j} J unwitnessed after {self._losses[request_id]} losses")
