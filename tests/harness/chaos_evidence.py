"""Eats what a run writes while it runs, and holds all of it against the ledger at the end."""

import collections
import math
from collections.abc import Mapping

from harness.chaos_checker import Finding, findings, twins
from harness.chaos_ledgers import LedgerReader, Page
from harness.chaos_records import Evidence, GaveUp, Holder, Start, Terms, Told, Withdrawing, Withdrawn
from harness.chaos_segments import Line, Segments
from harness.chaos_store import Store
from harness.chaos_ticks import Site, Tenure
from harness.tick_trace import Trace, tick_of

from services.ledger.states import Status, Transition
from substations.heartbeat import GRANT_BEATS

OF_CLIENTS = {"told": Told, "gave_up": GaveUp, "withdrawing": Withdrawing, "withdrawn": Withdrawn}
KEPT_OF_A_KIND = 20
"""Findings of one kind that are kept as a whole; the others are only counted."""
STRANGERS_AT_ONCE = 500
WORDS_OF_A_TICK = 300
"""Characters; a tick has up to 40 sessions."""


class Findings:
    """What was wrong, bounded: a broken variant breaks every request."""

    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.numbers: collections.Counter[str] = collections.Counter()

    def add(self, finding: Finding) -> None:
        self.numbers[finding.kind] += 1
        if self.numbers[finding.kind] <= KEPT_OF_A_KIND:
            self.kept.append(finding)


class Eater:
    """Takes lines of clients, witnesses and ticks, in any mixture of writers, each of them in its own order."""

    def __init__(self, store: Store, found: Findings, sites: Mapping[str, Site], speed: float) -> None:
        self._store = store
        self._found = found
        self._sites = sites
        self._speed = speed
        self._tenures: dict[str, Tenure] = {}
        self._traces: dict[str, Trace] = {}

    @property
    def held(self) -> int:
        """How many records are in memory."""
        return self._store.held + sum(one.held for one in self._tenures.values())

    def eat_clients(self, segments: Segments, *, is_last: bool = False) -> None:
        """What clients were told since the last time."""
        for _, line in segments.end() if is_last else segments.new_lines():
            if line is not None:
                self._store.add(OF_CLIENTS[line.pop("event")](**line))

    def eat_witnesses(self, segments: Segments, *, is_last: bool = False) -> None:
        """What witnesses saw since the last time."""
        for line in segments.end() if is_last else segments.new_lines():
            self.witness(line)

    def eat_ticks(self, segments: Segments, *, is_last: bool = False) -> None:
        """What substations set at their ticks since the last time; each tick is judged at once."""
        for chain, line in segments.end() if is_last else segments.new_lines():
            if line is None:
                self._traces.pop(chain, None)
                continue
            trace = self._traces.setdefault(chain, Trace(self._speed))
            for words in trace.breaches(tick_of(line)):
                self._found.add(Finding("tick", chain, words[:WORDS_OF_A_TICK]))

    def witness(self, line: Line) -> None:
        """One line of a witness, or that there will be no more."""
        if line.what is None:
            if line.chain in self._tenures:
                self._tenures.pop(line.chain).end()
            return
        if line.chain not in self._tenures:
            # Not from the line: a tenure may begin with the stops of the one before it.
            substation, epoch, writer = line.chain.rsplit("-", 2)
            holder = Holder(substation, int(epoch), writer)
            self._tenures[line.chain] = Tenure(
                holder, self._sites[holder.substation], self._speed, self._store, self._found.add
            )
        self._tenures[line.chain].take(line.what)


def grant_s(heartbeat_s: float, speed: float) -> int:
    """Session time for which a grant lasts."""
    return math.ceil(GRANT_BEATS * heartbeat_s * speed)


def audit(store: Store, ledger: LedgerReader, found: Findings, terms: Terms) -> dict[str, int]:
    """Judge every request of the ledger, and every one that somebody has heard of; returns the figures of the run."""
    store.finish()
    numbers: collections.Counter[str] = collections.Counter()

    def judge(page: Page, request_ids: list[str]) -> None:
        seen = store.of_requests(request_ids)
        of_keys = store.of_keys([row.idempotency_key for row in page.rows.values() if row.idempotency_key])
        evidence = Evidence(*seen.values(), page.rows, page.histories, *of_keys, terms)
        for one in findings(evidence):
            found.add(one)

    for page in ledger.pages():
        judge(page, list(page.rows))
        _count(numbers, page)
    for strangers in store.strangers(STRANGERS_AT_ONCE):
        judge(Page({}, {}), strangers)
    for key, request_ids in store.keys_of_several():
        found.add(Finding("doubled", key, f"one key, several requests: {request_ids}"))
    for one in twins(store.busy()):
        found.add(one)
    numbers |= {"202 told": store.count(Told), "starts": store.count(Start)}
    return dict(numbers)


def _count(numbers: collections.Counter[str], page: Page) -> None:
    for row in page.rows.values():
        numbers["requests"] += 1
        numbers[f"ended {row.status}"] += 1
        numbers["interruptions"] += row.interruptions
    for line in (one for history in page.histories.values() for one in history):
        numbers[f"reason {line.reason}"] += 1
    most = max(map(_attempts, page.histories.values()), default=0)
    numbers["most attempts of one request"] = max(numbers["most attempts of one request"], most)


def _attempts(history: list[Transition]) -> int:
    return sum(line.status is Status.ASSIGNED for line in history)
