"""The checker finds every kind of breach that is written into a sound record, and nothing in the sound record."""

import json
import sqlite3
from contextlib import closing
from dataclasses import astuple

import pytest
from harness.chaos_checker import Evidence, Finding, Holder, Piece, Row, Site, Start, Told, Withdrawn, findings
from harness.chaos_evidence import LedgerReader, answered, evidence, witnessed

from services.ledger import schema
from services.ledger.states import Reason, Status, Transition

OFFSET_S = 1_000.0
GRANT_S = 900
NORTH, EAST = Holder("north", 3, "71"), Holder("east", 5, "72")
WHOLE_J = 36_000_000


def line(at_s, status, substation=None, attempt=0, epoch=None, reason="…"):
    return Transition(round((at_s + OFFSET_S) * 1000), Status(status), substation, attempt, epoch, reason)


def sound():
    """`a` is charged at once; `b` loses its first substation with an open grant, and goes on at another; `c` leaves."""
    histories = {
        "a": [
            line(1, "accepted"),
            line(2, "assigned", "north", 1),
            line(3, "charging", "north", 1, 3),
            line(9, "completed", "north", 1, 3),
        ],
        "b": [
            line(1, "accepted"),
            line(2, "assigned", "north", 1),
            line(3, "charging", "north", 1, 3),
            line(8, "accepted", None, 1, 3, Reason.SUBSTATION_LOST),
            line(9, "assigned", "east", 2),
            line(10, "charging", "east", 2, 5),
            line(12, "completed", "east", 2, 5),
        ],
        "c": [line(1, "accepted"), line(2, "cancelled")],
    }
    rows = {
        "a": Row("completed", WHOLE_J, WHOLE_J, 11_000, 0, "key-a"),
        "b": Row("completed", WHOLE_J, WHOLE_J, 11_000, 1, "key-b"),
        "c": Row("cancelled", WHOLE_J, 0, 11_000, 0, "key-c"),
    }
    pieces = [
        Piece("a", 1, NORTH, 3.1, 5.1, 13_000_000),
        Piece("a", 1, NORTH, 5.1, 8.6, 23_000_000),
        Piece("b", 1, NORTH, 3.1, 5.1, 13_000_000),
        Piece("b", 2, EAST, 10.1, 12.0, WHOLE_J - 13_000_000 - 11_000 * GRANT_S),
    ]
    starts = [Start("a", 1, NORTH, 3.1), Start("b", 1, NORTH, 3.1), Start("b", 2, EAST, 10.1)]
    told = [Told(f"key-{one}", one, WHOLE_J, 1.1) for one in rows]
    sites = {"north": Site(22_000, 2), "east": Site(22_000, 2)}
    return Evidence(
        [*told, told[0]], [Withdrawn("c", "cancelled", 2.1)], starts, pieces, rows, histories, sites, 600.0, GRANT_S,
        OFFSET_S,
    )  # fmt: skip


def kinds(seen):
    return {(one.kind, one.subject) for one in findings(seen)}


def test_a_sound_record_has_no_finding():
    assert findings(sound()) == []


def with_row(seen, request_id, **changes):
    return seen._replace(rows={**seen.rows, request_id: seen.rows[request_id]._replace(**changes)})


def with_history(seen, request_id, *lines):
    return seen._replace(histories={**seen.histories, request_id: list(lines)})


def with_piece(seen, *more):
    return seen._replace(pieces=[*seen.pieces, *more])


def without_its_row(seen):
    return seen._replace(
        rows={name: row for name, row in seen.rows.items() if name != "c"},
        histories={name: history for name, history in seen.histories.items() if name != "c"},
        withdrawn=[],
    )


def unended(seen):
    return with_history(with_row(seen, "a", status="charging"), "a", *seen.histories["a"][:-1])


def ended_twice(seen):
    return with_history(seen, "a", *seen.histories["a"], line(10, "completed", "north", 1, 3))


def two_ids(seen):
    """As if the second of two concurrent POSTs had made a request of its own."""
    return seen._replace(told=[*seen.told, Told("key-a", "c", WHOLE_J, 1.2)])


def twin_session(seen):
    """East charges for `a` while north does."""
    return with_piece(with_row(seen, "a", energy_delivered_j=WHOLE_J), Piece("a", 1, EAST, 4.0, 4.1, 0))


def same_epoch_in_two_processes(seen):
    return with_piece(seen, Piece("b", 1, Holder("north", 3, "99"), 4.0, 4.1, 0))


def started_unclaimed(seen):
    return seen._replace(starts=[*seen.starts, Start("c", 1, EAST, 3.0)])


def started_before_its_claim(seen):
    return seen._replace(starts=[Start("a", 1, NORTH, 2.9), *seen.starts[1:]])


def started_in_an_epoch_that_is_over(seen):
    return seen._replace(starts=[Start("a", 1, NORTH._replace(epoch=2), 3.1), *seen.starts[1:]])


def started_twice(seen):
    return seen._replace(starts=[*seen.starts, Start("a", 1, NORTH, 6.0)])


def over_delivered(seen):
    return with_piece(seen, Piece("a", 1, NORTH, 8.6, 8.7, 1))


def more_than_asked(seen):
    return with_piece(with_row(seen, "a", energy_delivered_j=WHOLE_J + 1), Piece("a", 1, NORTH, 8.6, 8.7, 1))


def completed_too_early(seen):
    pieces = [one._replace(energy_j=one.energy_j - (one.to_s == 8.6)) for one in seen.pieces]
    return with_row(seen._replace(pieces=pieces), "a", energy_delivered_j=WHOLE_J - 1)


def unwitnessed(seen):
    """`a` never lost its substation, so that not a joule may be missing."""
    return seen._replace(pieces=[one._replace(energy_j=one.energy_j - (one.to_s == 8.6)) for one in seen.pieces])


def more_than_a_grant_unwitnessed(seen):
    return seen._replace(pieces=[one._replace(energy_j=one.energy_j - (one.to_s == 12.0)) for one in seen.pieces])


def interruptions_out_of_nothing(seen):
    return with_row(seen, "a", interruptions=2)


def above_the_limit(seen):
    return seen._replace(sites={**seen.sites, "east": Site(8_000, 2)})


def beyond_the_connectors(seen):
    return seen._replace(sites={**seen.sites, "north": Site(22_000, 1)})


def told_of_another_end(seen):
    return seen._replace(withdrawn=[Withdrawn("a", "cancelled", 2.0)])


def other_energy_than_asked(seen):
    return seen._replace(told=[seen.told[0]._replace(energy_j=1), *seen.told[1:]])


def no_transition(seen):
    return with_history(seen, "c", line(1, "accepted"), line(2, "completed"))


@pytest.mark.parametrize(
    ("breach", "kind", "subject"),
    [
        (without_its_row, "lost", "c"),
        (unended, "unended", "a"),
        (ended_twice, "lost", "a"),
        (ended_twice, "unsound", "a"),
        (two_ids, "doubled", "key-a"),
        (twin_session, "doubled", "a"),
        (same_epoch_in_two_processes, "doubled", "b"),
        (same_epoch_in_two_processes, "two holders", "north"),
        (started_unclaimed, "unclaimed", "c"),
        (started_before_its_claim, "unclaimed", "a"),
        (started_in_an_epoch_that_is_over, "unclaimed", "a"),
        (started_twice, "doubled", "a"),
        (over_delivered, "over-delivered", "a"),
        (more_than_asked, "over-delivered", "a"),
        (completed_too_early, "under-delivered", "a"),
        (unwitnessed, "unwitnessed", "a"),
        (more_than_a_grant_unwitnessed, "unwitnessed", "b"),
        (interruptions_out_of_nothing, "unsound", "a"),
        (above_the_limit, "limit exceeded", "east"),
        (beyond_the_connectors, "connectors exceeded", "north"),
        (told_of_another_end, "contradicted", "a"),
        (other_energy_than_asked, "altered", "a"),
        (no_transition, "unsound", "c"),
    ],
)
def test_a_breach_written_into_the_record_is_found(breach, kind, subject):
    assert (kind, subject) in kinds(breach(sound()))


def write_record(folder, seen):
    """A record as a run leaves it on disk."""
    clients, ledger = folder / "clients.jsonl", folder / "ledger.sqlite"
    noted = [{"event": "told", **one._asdict()} for one in seen.told]
    noted += [{"event": "withdrawn", **one._asdict()} for one in seen.withdrawn]
    clients.write_text("".join(json.dumps(one) + "\n" for one in noted))
    (folder / "witness").mkdir()
    for one in [*seen.starts, *seen.pieces]:
        what = {**one._asdict(), **one.holder._asdict(), "event": "start" if isinstance(one, Start) else "energy"}
        del what["holder"], what["writer"]
        name = f"{one.holder.substation}-{one.holder.epoch}-{one.holder.writer}.jsonl"
        with (folder / "witness" / name).open("a") as file:
            file.write(json.dumps(what) + "\n")
    with closing(sqlite3.connect(ledger)) as database, database:
        for statement in schema.SQLITE:
            if "TRIGGER" not in statement:
                database.execute(statement)
        for request_id, row in seen.rows.items():
            database.execute(
                "INSERT INTO request (id, status, energy_requested_j, energy_delivered_j, power_max_w, interruptions, "
                "idempotency_key, vehicle_id, priority, accepted_at_ms, wait_max_ms, wait_until_ms, changed_at_ms, "
                "reason) VALUES (?, ?, ?, ?, ?, ?, ?, '', 0, 0, 0, 0, 0, '')",
                [request_id, *row],
            )
        for request_id, history in seen.histories.items():
            for one in history:
                database.execute(
                    "INSERT INTO transition (request_id, at_ms, status, substation, attempt, epoch, reason) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [request_id, *astuple(one)],
                )
    return clients, LedgerReader(ledger)


def test_a_record_on_disk_is_read_as_it_was_written_but_for_the_half_lines_of_who_was_killed(tmp_path):
    seen = sound()
    clients, ledger = write_record(tmp_path, seen)
    with (tmp_path / "witness" / "north-3-71.jsonl").open("a") as file:
        file.write('{"event":"energy","from_s":3.')
    read = evidence(
        clients=clients, witnesses=tmp_path / "witness", ledger=ledger, sites=seen.sites, speed=600.0, heartbeat_s=0.5,
        wall_offset_s=OFFSET_S,
    )  # fmt: skip
    assert read.grant_s == GRANT_S
    assert (read.told, read.withdrawn, read.rows) == (seen.told, seen.withdrawn, seen.rows)
    assert read.histories == seen.histories
    assert sorted(read.starts) == sorted(seen.starts)
    assert sorted(read.pieces) == sorted(seen.pieces)
    assert ledger.open_requests() == 0
    assert findings(read) == []


def test_half_a_line_in_the_middle_is_no_crash_but_a_fault(tmp_path):
    (tmp_path / "north-3-71.jsonl").write_text('{"event":"st\n{"event":"stop"}\n')
    with pytest.raises(json.JSONDecodeError):
        witnessed(tmp_path)


def test_an_empty_log_is_a_log(tmp_path):
    (tmp_path / "clients.jsonl").touch()
    assert answered(tmp_path / "clients.jsonl") == ([], [])


def test_a_finding_says_what_whose_and_how():
    assert str(Finding("lost", "a", "gone")) == "lost: a: gone"
