"""A long run is judged in bounded memory, and each kind of breach is found wherever in the run it lies."""

import random
import sqlite3
import tracemalloc
from contextlib import closing
from dataclasses import astuple

import pytest
from harness.chaos_checker import ATTEMPTS_MAX
from harness.chaos_evidence import Eater, Findings, audit
from harness.chaos_ledgers import LedgerReader, Page
from harness.chaos_records import GaveUp, Row, Terms, Told
from harness.chaos_segments import Line, Segments, SegmentWriter
from harness.chaos_store import Store
from harness.chaos_ticks import Site

from services.ledger import schema
from services.ledger.states import Status, Transition

MANY = 200_000
HELD_MAX = 6_000
PEAK_MAX_BYTES = 4_000_000
SITES = {"north": Site(22_000, 2), "east": Site(22_000, 2)}
ENERGY_J = 1_000_000
OFFSET_S = 1_000.0
TERMS = Terms(grant_s=900, lease_s=3.0, wall_offset_s=OFFSET_S)


def line(at_s, status, attempt=0, epoch=None):
    substation = None if attempt == 0 else "north"
    return Transition(round((at_s + OFFSET_S) * 1000), Status(status), substation, attempt, epoch, "…")


HISTORY = [line(0, "accepted"), line(0, "assigned", 1), line(0, "charging", 1, 3), line(0, "completed", 1, 3)]


class Run:
    """A sound run of `requests`, one in a second, each of which gets its energy in a tick; and breaches of it."""

    def __init__(self, requests):
        self.requests = requests
        self.told, self.witnessed, self.rows, self.histories = {}, {}, {}, {}
        """What differs from the sound run, by the number of the request."""

    def lines_of(self, n):
        sound = [
            ("north-3-71", self.event(n, "start", at_s=n + 0.1)),
            ("north-3-71", self.energy(n, n + 0.1, n + 0.3)),
            ("north-3-71", self.event(n, "stop", at_s=n + 0.4)),
        ]
        return self.witnessed.get(n, sound)

    def told_of(self, n):
        return self.told.get(n, [Told(f"key-{n}", f"id-{n}", ENERGY_J, n)])

    def event(self, n, event, substation="north", epoch=3, **what):
        return {"event": event, "request_id": f"id-{n}", "attempt": 1, "substation": substation, "epoch": epoch, **what}

    def energy(self, n, from_s, to_s, energy_j=ENERGY_J, **whose):
        return self.event(n, "energy", from_s=from_s, to_s=to_s, energy_j=energy_j, **whose)

    def pages(self, most=500):
        for first in range(0, self.requests, most):
            numbers = [n for n in range(first, min(self.requests, first + most)) if self.rows.get(n, 1) is not None]
            rows = {f"id-{n}": self.rows.get(n, Row("completed", ENERGY_J, ENERGY_J, 11_000, 0, f"key-{n}", f"EV-{n}"))
                    for n in numbers}  # fmt: skip
            yield Page(rows, {f"id-{n}": self.histories.get(n, HISTORY) for n in numbers})


def judged(run, path):
    """The findings, and the most records that were ever held."""
    found, held = Findings(), 0
    with Store(path) as store:
        eater = Eater(store, found, SITES, speed=600.0)
        for n in range(run.requests):
            for one in run.told_of(n):
                store.add(one)
            for chain, what in run.lines_of(n):
                eater.witness(Line(chain, what))
            if n % 97 == 0:
                held = max(held, eater.held)
        for chain in ("north-3-71", "north-5-71", "north-3-72", "east-5-73"):
            eater.witness(Line(chain, None))
        audit(store, run, found, TERMS)
    return found, held


def test_two_hundred_thousand_requests_leave_no_more_in_memory_than_a_thousand(tmp_path):
    found, held = judged(Run(MANY), tmp_path / "evidence")
    assert (found.kept, held <= HELD_MAX) == ([], True), held


def test_memory_does_not_grow_with_the_run(tmp_path):
    peaks_bytes = []
    for requests in (1_000, 5_000):
        tracemalloc.start()
        judged(Run(requests), tmp_path / f"evidence-{requests}")
        peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks_bytes) < PEAK_MAX_BYTES, peaks_bytes


def lost(run, n):
    run.rows[n] = None


def without_an_end(run, n):
    run.rows[n] = Row("charging", ENERGY_J, ENERGY_J, 11_000, 0, f"key-{n}", f"EV-{n}")
    run.histories[n] = HISTORY[:-1]


def charged_by_two(run, n):
    """A second process of the same tenure delivers nothing, but at the same time; its file is another."""
    run.witnessed[n] = [*run.lines_of(n), ("north-3-72", run.energy(n, n + 0.15, n + 0.25, 0))]


def charged_much_later_by_another(run, n):
    """The breach is dated long before it is written, as by a process that was frozen meanwhile."""
    late = (n + 1_000) % run.requests
    run.witnessed[late] = [
        *run.lines_of(late),
        ("east-5-73", run.energy(n, n + 0.15, n + 0.25, 0, substation="east", epoch=5)),
    ]


def over_delivered(run, n):
    run.witnessed[n] = [*run.lines_of(n), ("north-3-71", run.energy(n, n + 0.3, n + 0.35, 1))]


def above_the_limit(run, n):
    run.rows[n] = Row("completed", 4 * ENERGY_J, 4 * ENERGY_J, 11_000, 0, f"key-{n}", f"EV-{n}")
    run.told[n] = [Told(f"key-{n}", f"id-{n}", 4 * ENERGY_J, n)]
    run.witnessed[n] = [
        ("north-3-71", {**what, "energy_j": 4 * what["energy_j"]} if "energy_j" in what else what)
        for _, what in run.lines_of(n)
    ]


def one_key_for_two(run, n):
    run.told[n] = [*run.told_of(n), Told(f"key-{n}", f"id-{(n + 7) % run.requests}", ENERGY_J, n)]


def told_of_another(run, n):
    """The client of this key was told of a request that has another client too."""
    run.told[n] = [Told(f"key-{n}", f"id-{(n + 7) % run.requests}", ENERGY_J, n)]


def told_of_nobody(run, n):
    run.told[n] = []


def sent_about(run, n):
    moves = [
        one
        for attempt in range(1, ATTEMPTS_MAX + 2)
        for one in (line(n, "assigned", attempt), line(n, "accepted", attempt))
    ]
    run.histories[n] = [line(n, "accepted"), *moves[:-1], line(n, "charging", ATTEMPTS_MAX + 1, 3),
                        line(n, "completed", ATTEMPTS_MAX + 1, 3)]  # fmt: skip
    run.witnessed[n] = [(chain, {**what, "attempt": ATTEMPTS_MAX + 1}) for chain, what in run.lines_of(n)]


REQUESTS = 1_500


@pytest.mark.parametrize("place", ["first", "a page's border", "middle", "last"])
@pytest.mark.parametrize(
    ("breach", "kind"),
    [
        (lost, "lost"),
        (without_an_end, "unended"),
        (charged_by_two, "doubled"),
        (charged_by_two, "two holders"),
        (charged_much_later_by_another, "doubled"),
        (over_delivered, "over-delivered"),
        (above_the_limit, "limit exceeded"),
        (one_key_for_two, "doubled"),
        (told_of_another, "doubled"),
        (told_of_nobody, "untold"),
        (sent_about, "too many attempts"),
    ],
)
def test_a_breach_is_found_wherever_it_lies(tmp_path, breach, kind, place):
    n = {"first": 0, "a page's border": 499, "middle": 1_234, "last": REQUESTS - 1}[place]
    run = Run(REQUESTS)
    breach(run, n)
    found, _ = judged(run, tmp_path / "evidence")
    assert kind in found.numbers
    assert {one.subject for one in found.kept} <= {f"id-{n}", f"key-{n}", f"id-{(n + 7) % REQUESTS}", "north"}


def test_a_tick_that_breaks_its_limit_is_found_across_the_border_of_segments(tmp_path):
    """Of two ticks that are sound by themselves the second delivers more than the power of the first allows."""
    writer, found = SegmentWriter(tmp_path / "ticks", "north-1", segment_bytes=1), Findings()
    for at_s, owed_j in ((1.0, 9_000), (2.0, 9_000), (2.1, 1_000)):
        session = ["a", 1, 100, 100, owed_j, False]
        writer.write(
            [{"at_s": at_s, "limit_w": 100, "connectors": 1, "floor_w": 0, "fenced": False, "sessions": [session]}]
        )
    assert len(list((tmp_path / "ticks").iterdir())) == 3
    with Store(tmp_path / "evidence") as store:
        Eater(store, found, SITES, speed=600.0).eat_ticks(Segments(tmp_path / "ticks", keep=False), is_last=True)
    [one] = found.kept
    assert one.kind == "tick"
    assert one.words.startswith("energy: 8000 J of at most 6000")


def test_a_tenure_that_begins_with_a_stop_of_the_one_before_it_is_its_own(tmp_path):
    run = Run(2)
    run.histories[1] = [
        line(0, "accepted"),
        line(0, "assigned", 1),
        line(0, "charging", 1, 5),
        line(0, "completed", 1, 5),
    ]
    run.witnessed[0] = run.lines_of(0)[:2]
    run.witnessed[1] = [
        ("north-5-71", run.event(0, "stop", at_s=1.1)),
        ("north-5-71", run.event(1, "start", at_s=1.1, epoch=5)),
        ("north-5-71", run.energy(1, 1.1, 1.3, epoch=5)),
    ]
    assert judged(run, tmp_path / "evidence")[0].kept == []


def test_of_a_thousand_findings_a_few_are_kept_and_all_are_counted(tmp_path):
    run = Run(1_000)
    run.rows = dict.fromkeys(range(1_000))
    found, _ = judged(run, tmp_path / "evidence")
    assert found.numbers["lost"] == 1_000
    assert len([one for one in found.kept if one.kind == "lost"]) < 100


def test_what_only_a_witness_has_heard_of_is_a_stranger_too(tmp_path):
    run = Run(10)
    run.rows[4], run.told[4] = None, []
    found, _ = judged(run, tmp_path / "evidence")
    assert {(one.kind, one.subject) for one in found.kept} == {("unclaimed", "id-4"), ("over-delivered", "id-4")}


def test_a_request_whose_client_stopped_asking_need_not_have_been_told(tmp_path):
    run = Run(10)
    run.told[4] = [GaveUp("key-4", 4.0)]
    found, _ = judged(run, tmp_path / "evidence")
    assert found.kept == []


def write_ledger(path, run):
    with closing(sqlite3.connect(path)) as database, database:
        for statement in schema.SQLITE:
            if "TRIGGER" not in statement:
                database.execute(statement)
        for page in run.pages():
            for request_id, row in page.rows.items():
                database.execute(
                    "INSERT INTO request (id, status, energy_requested_j, energy_delivered_j, power_max_w, "
                    "interruptions, idempotency_key, vehicle_id, priority, accepted_at_ms, wait_max_ms, wait_until_ms, "
                    "changed_at_ms, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0, '')",
                    [request_id, *row],
                )
                for one in page.histories[request_id]:
                    database.execute(
                        "INSERT INTO transition (request_id, at_ms, status, substation, attempt, epoch, reason) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?)",
                        [request_id, *astuple(one)],
                    )
    return LedgerReader(path)


@pytest.mark.parametrize("seed", range(3))
def test_a_run_on_disk_is_read_as_it_was_written_while_it_goes_on_and_at_its_end(tmp_path, seed):
    """Witness and clients write in segments that end anywhere; the ledger is read in pages that end anywhere."""
    dice = random.Random(seed)
    run = Run(200)
    without_an_end(run, 150)
    found = Findings()
    ledger = write_ledger(tmp_path / "ledger.sqlite", run)
    assert ledger.open_requests() == 1
    assert [one for page in ledger.pages(7) for one in page.histories.items()] == [
        one for page in run.pages() for one in page.histories.items()
    ]
    clients = SegmentWriter(tmp_path / "clients", "client-0", segment_bytes=1_000)
    witness = SegmentWriter(tmp_path / "witness", "north-3", segment_bytes=1_000)
    answers, witnesses = Segments(tmp_path / "clients", keep=False), Segments(tmp_path / "witness", keep=False)
    with Store(tmp_path / "evidence") as store:
        eater = Eater(store, found, SITES, speed=600.0)
        for n in range(run.requests):
            clients.write([{"event": "told", **one._asdict()} for one in run.told_of(n)])
            for _, what in run.lines_of(n):
                witness.write([what])
                if dice.random() < 0.05:
                    eater.eat_clients(answers)
                    eater.eat_witnesses(witnesses)
        eater.eat_clients(answers, is_last=True)
        eater.eat_witnesses(witnesses, is_last=True)
        counts = audit(store, ledger, found, TERMS)
    assert [(one.kind, one.subject) for one in found.kept] == [("unended", "id-150")]
    assert counts == {
        "requests": 200, "ended completed": 199, "ended charging": 1, "reason …": 799,
        "most attempts of one request": 1, "202 told": 200, "starts": 200,
    }  # fmt: skip
