"""Holds a run against the promises, from outside: what clients heard, what witnesses saw, how the ledger ended.

Pure. No service is asked: the three records are joined, and wherever two of them disagree there is a finding. Requests
are judged page by page, each with everything that is known of it.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from harness.chaos_records import Busy, Evidence, Piece

from services.ledger.states import INTERRUPTIONS_MAX, TERMINAL, Status, faults

CLOCKS_APART_S = 0.05
"""Between the wall clock of the history and the monotonic one of the witnesses, both of one machine."""
ATTEMPTS_MAX = 20


class Finding(NamedTuple):
    """A promise that was broken: its kind, whose, and what was seen."""

    kind: str
    subject: str
    words: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.words}"


def findings(seen: Evidence) -> list[Finding]:
    """Everything that is wrong with these requests; empty where all promises were kept."""
    rules = (
        *(_lost, _untold, _unended, _unasked, _altered, _contradicted, _unheeded),
        *(_unsound, _restless, _unclaimed, _doubled, _energies),
    )
    return [Finding(*found) for rule in rules for found in rule(seen)]


Found = Iterator[tuple[str, str, str]]


def _lost(seen: Evidence) -> Found:
    """Each 202 is in the ledger."""
    for one in {told.request_id: told for told in seen.told}.values():
        if one.request_id not in seen.rows or not seen.histories.get(one.request_id):
            yield "lost", one.request_id, f"a client has its 202 since {one.at_s:.3f} s, the ledger has no such request"


def _untold(seen: Evidence) -> Found:
    """Each request of the ledger has one client, who was told of it unless it stopped asking."""
    told = {one.request_id for one in seen.told}
    for request_id, row in seen.rows.items():
        if request_id in told:
            continue
        key = row.idempotency_key or ""
        if key in seen.told_by_key:
            yield "doubled", request_id, f"under {key} the client was told of {seen.told_by_key[key]}: {row}"
        elif key not in seen.given_up:
            yield "untold", request_id, f"no client was told of it: {row}"


def _unended(seen: Evidence) -> Found:
    """Each request ends in exactly one terminal state, whether or not anybody was told of it."""
    for request_id, row in seen.rows.items():
        ends = [line.status for line in seen.histories.get(request_id, ()) if line.status in TERMINAL]
        if not ends and row.status not in TERMINAL:
            yield "unended", request_id, f"it is {row.status} still"
        elif len(ends) != 1:
            yield "lost", request_id, f"it ended {len(ends)} times: {', '.join(ends)}"
        elif row.status != ends[0]:
            yield "unsound", request_id, f"it is {row.status}, its history ends {ends[0]}"


def _unasked(seen: Evidence) -> Found:
    """Nothing ends before its energy is delivered, unless its client withdrew it or it was interrupted too often.

    The load of a run has no departures, and waits longer than the run lasts.
    """
    withdrawing = {one.request_id for one in seen.withdrawing}
    for request_id, row in seen.rows.items():
        match row.status:
            case Status.EXPIRED:
                yield "unasked end", request_id, f"it expired, and no client set a time: {row}"
            case Status.CANCELLED | Status.STOPPED if request_id not in withdrawing:
                yield "unasked end", request_id, f"it is {row.status}, and no client withdrew it: {row}"
            case Status.FAILED if row.interruptions <= INTERRUPTIONS_MAX:
                yield "unasked end", request_id, f"it failed after {row.interruptions} interruptions: {row}"


def _altered(seen: Evidence) -> Found:
    """A request is what was asked for, under the key that it was asked with."""
    for one in seen.told:
        row = seen.rows.get(one.request_id)
        if row is not None and (row.idempotency_key, row.energy_requested_j) != (one.key, one.energy_j):
            yield "altered", one.request_id, f"{one.energy_j} J were asked for under {one.key}, the ledger has {row}"


def _contradicted(seen: Evidence) -> Found:
    """A client that was told of an end was told the truth."""
    for one in seen.withdrawn:
        row = seen.rows.get(one.request_id)
        if one.status in TERMINAL and (row is None or row.status != one.status):
            yield "contradicted", one.request_id, f"DELETE said {one.status} at {one.at_s:.3f} s, the ledger has {row}"
        elif one.status not in TERMINAL and one.status != Status.CHARGING:
            words = f"DELETE said {one.status} at {one.at_s:.3f} s, and it ends whatever waits"
            yield "contradicted", one.request_id, words


def _unheeded(seen: Evidence) -> Found:
    """Once a DELETE was answered, nobody is sent or begins to charge; who charges stops before a lease could run out.

    Every beat that is sent after the answer brings the wish to stop, and without a beat the lease ends. A takeover is
    no beginning.
    """
    answered_at_s: dict[str, float] = {}
    for one in seen.withdrawn:
        answered_at_s[one.request_id] = min(one.at_s, answered_at_s.get(one.request_id, one.at_s))
    for request_id, at_s in answered_at_s.items():
        charged: set[int] = set()
        for line in seen.histories.get(request_id, ()):
            is_new = line.status is Status.ASSIGNED or (line.status is Status.CHARGING and line.attempt not in charged)
            if line.status is Status.CHARGING:
                charged.add(line.attempt)
            late_s = line.at_ms / 1000 - seen.terms.wall_offset_s - at_s
            if is_new and late_s > CLOCKS_APART_S:
                yield "unheeded", request_id, f"it was {line.status} {late_s:.3f} s after a DELETE was answered"
    for piece in seen.pieces:
        at_s = answered_at_s.get(piece.request_id, math.inf)
        if piece.energy_j > 0 and piece.to_s > at_s + seen.terms.lease_s:
            yield "unheeded", piece.request_id, f"{_words(piece)}, though a DELETE was answered at {at_s:.3f} s"


def _unsound(seen: Evidence) -> Found:
    for request_id, history in seen.histories.items():
        for fault in faults(history):
            yield "unsound", request_id, fault


def _restless(seen: Evidence) -> Found:
    """No request is sent about for ever."""
    for request_id, history in seen.histories.items():
        attempts = max((line.attempt for line in history), default=0)
        if attempts > ATTEMPTS_MAX:
            yield "too many attempts", request_id, f"it was assigned {attempts} times, at most {ATTEMPTS_MAX} are sound"


def _unclaimed(seen: Evidence) -> Found:
    """Each start was preceded by its claim, and each claim started at most once."""
    claimed_at_s: dict[tuple[str, int, str, int], float] = {}
    for request_id, history in seen.histories.items():
        for line in history:
            if line.status is Status.CHARGING:
                key = (request_id, line.attempt, line.substation or "", line.epoch or 0)
                claimed_at_s[key] = line.at_ms / 1000 - seen.terms.wall_offset_s
    started: Counter[tuple[str, int, str, int]] = Counter()
    for one in seen.starts:
        key = (one.request_id, one.attempt, one.holder.substation, one.holder.epoch)
        started[key] += 1
        if key not in claimed_at_s:
            yield "unclaimed", one.request_id, f"{one.holder} started attempt {one.attempt}, the history has no claim"
        elif one.at_s < claimed_at_s[key] - CLOCKS_APART_S:
            early_s = claimed_at_s[key] - one.at_s
            yield "unclaimed", one.request_id, f"{one.holder} started {early_s:.3f} s before its claim"
    for key, times in started.items():
        if times > 1:
            yield "doubled", key[0], f"attempt {key[1]} was started {times} times by {key[2]} in epoch {key[3]}"


def _doubled(seen: Evidence) -> Found:
    """At any moment at most one holder charges for a request, by the dated readings of the ticks."""
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for one in seen.pieces:
        pieces[one.request_id].append(one)
    for request_id, its in pieces.items():
        for before, after in _overlaps(its):
            yield "doubled", request_id, f"{_words(before)} and {_words(after)}"


def _energies(seen: Evidence) -> Found:
    """Witnessed ≤ ledger ≤ requested; ledger − witnessed ≤ one grant for each tenure that was lost."""
    witnessed_j: Counter[str] = Counter()
    for one in seen.pieces:
        witnessed_j[one.request_id] += one.energy_j
    for request_id, row in seen.rows.items():
        witness_j, ledger_j = witnessed_j[request_id], row.energy_delivered_j
        if witness_j > ledger_j:
            yield "over-delivered", request_id, f"{witness_j} J were witnessed, the ledger knows of {ledger_j} J: {row}"
        if ledger_j > row.energy_requested_j:
            yield "over-delivered", request_id, f"the ledger has {ledger_j} J of {row.energy_requested_j} J"
        if row.status == Status.COMPLETED and ledger_j < row.energy_requested_j:
            yield "under-delivered", request_id, f"completed with {ledger_j} J of {row.energy_requested_j} J"
        tenures = sum(line.status is Status.CHARGING for line in seen.histories.get(request_id, ()))
        if row.interruptions > tenures:
            yield "unsound", request_id, f"{row.interruptions} interruptions of {tenures} tenures"
        may_miss_j = min(row.interruptions, tenures) * row.power_max_w * seen.terms.grant_s
        if ledger_j - witness_j > may_miss_j:
            missing_j = ledger_j - witness_j
            yield "unwitnessed", request_id, f"{missing_j} J were seen by nobody, {may_miss_j} J may be: {row}"
    for request_id in witnessed_j.keys() - seen.rows.keys():
        yield "over-delivered", request_id, f"{witnessed_j[request_id]} J for a request that the ledger does not have"


def twins(busy: Iterable[Busy]) -> Iterator[Finding]:
    """At any moment one holder charges at a substation: else limit and connectors would hold for each of them only.

    `busy` is ordered by substation and time.
    """
    for before, after in itertools.pairwise(busy):
        one, other = before.holder, after.holder
        if one.substation == other.substation and one != other and after.from_s < before.to_s:
            words = f"{one} until {before.to_s:.3f} s and {other} from {after.from_s:.3f} s"
            yield Finding("two holders", one.substation, words)


def _overlaps(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, Piece]]:
    """Neighbours in time of which the second begins before the first has ended."""
    ordered = sorted(pieces, key=lambda one: (one.from_s, one.to_s))
    return ((before, after) for before, after in itertools.pairwise(ordered) if after.from_s < before.to_s)


def _words(one: Piece) -> str:
    return f"{one.holder} {one.from_s:.3f}–{one.to_s:.3f} s ({one.energy_j} J, attempt {one.attempt})"
