"""The checker finds every kind of breach that is written into a sound record, and nothing in the sound record."""

import pytest
from harness.chaos_checker import ATTEMPTS_MAX, Finding, findings, twins
from harness.chaos_records import Busy, Evidence, Holder, Piece, Row, Start, Terms, Told, Withdrawing, Withdrawn

from services.ledger.states import INTERRUPTIONS_MAX, Reason, Status, Transition

OFFSET_S = 1_000.0
GRANT_S = 900
LEASE_S = 3.0
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
        "a": Row("completed", WHOLE_J, WHOLE_J, 11_000, 0, "key-a", "EV-a"),
        "b": Row("completed", WHOLE_J, WHOLE_J, 11_000, 1, "key-b", "EV-b"),
        "c": Row("cancelled", WHOLE_J, 0, 11_000, 0, "key-c", "EV-c"),
    }
    pieces = [
        Piece("a", 1, NORTH, 3.1, 5.1, 13_000_000),
        Piece("a", 1, NORTH, 5.1, 8.6, 23_000_000),
        Piece("b", 1, NORTH, 3.1, 5.1, 13_000_000),
        Piece("b", 2, EAST, 10.1, 12.0, WHOLE_J - 13_000_000 - 11_000 * GRANT_S),
    ]
    starts = [Start("a", 1, NORTH, 3.1), Start("b", 1, NORTH, 3.1), Start("b", 2, EAST, 10.1)]
    told = [Told(f"key-{one}", one, WHOLE_J, 1.1) for one in rows]
    by_key = {one.key: one.request_id for one in told}
    return Evidence(
        [*told, told[0]],
        [Withdrawing("c", 1.9)],
        [Withdrawn("c", "cancelled", 2.1)],
        starts,
        pieces,
        rows,
        histories,
        by_key,
        set(),
        Terms(GRANT_S, LEASE_S, OFFSET_S),
    )


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


def sent_about_for_ever(seen):
    assigned = [
        one
        for attempt in range(1, ATTEMPTS_MAX + 2)
        for one in (line(2, "assigned", "north", attempt), line(3, "accepted", None, attempt))
    ]
    return with_history(seen, "c", line(1, "accepted"), *assigned, line(4, "cancelled", None, ATTEMPTS_MAX + 1))


def expired(seen):
    """Nobody set a time for it; that somebody withdrew it does not matter."""
    return with_history(with_row(seen, "c", status="expired"), "c", line(1, "accepted"), line(2, "expired"))


def cancelled_by_nobody(seen):
    return seen._replace(withdrawing=[], withdrawn=[])


def stopped(seen):
    return with_history(
        with_row(seen, "a", status="stopped"), "a", *seen.histories["a"][:-1], line(9, "stopped", "north", 1, 3)
    )


def failed_after_one_interruption(seen):
    return with_history(
        with_row(seen, "b", status="failed"), "b", *seen.histories["b"][:-1], line(12, "failed", "east", 2, 5)
    )


def told_of_nobody(seen):
    return seen._replace(told=[one for one in seen.told if one.request_id != "b"], told_by_key={})


def without_a_key(seen):
    return with_row(told_of_nobody(seen), "b", idempotency_key=None)


def told_of_another_under_its_key(seen):
    return told_of_nobody(seen)._replace(told_by_key={"key-b": "d"})


def unended_and_untold(seen):
    return told_of_nobody(with_history(with_row(seen, "b", status="charging"), "b", *seen.histories["b"][:-1]))


def withdrawn_at(seen, request_id, status, at_s):
    return seen._replace(
        withdrawing=[*seen.withdrawing, Withdrawing(request_id, at_s - 0.1)],
        withdrawn=[*seen.withdrawn, Withdrawn(request_id, status, at_s)],
    )


def left_waiting_by_a_delete(seen):
    """A DELETE ends what waits: it never says that a request waits still."""
    return withdrawn_at(seen, "a", "assigned", 2.95)


def claimed_after_a_delete(seen):
    return withdrawn_at(seen, "a", "charging", 2.9)


def assigned_after_a_delete(seen):
    return withdrawn_at(seen, "a", "charging", 1.9)


def claimed_elsewhere_after_a_delete(seen):
    """The wish to stop was forgotten with the substation that was lost."""
    return withdrawn_at(seen, "b", "charging", 9.1)


def charged_on_after_a_delete(seen):
    return withdrawn_at(seen, "a", "charging", 8.6 - LEASE_S - 0.01)


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
        (twin_session, "doubled", "a"),
        (same_epoch_in_two_processes, "doubled", "b"),
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
        (sent_about_for_ever, "too many attempts", "c"),
        (told_of_another_end, "contradicted", "a"),
        (other_energy_than_asked, "altered", "a"),
        (no_transition, "unsound", "c"),
        (expired, "unasked end", "c"),
        (cancelled_by_nobody, "unasked end", "c"),
        (stopped, "unasked end", "a"),
        (failed_after_one_interruption, "unasked end", "b"),
        (told_of_nobody, "untold", "b"),
        (without_a_key, "untold", "b"),
        (told_of_another_under_its_key, "doubled", "b"),
        (unended_and_untold, "unended", "b"),
        (left_waiting_by_a_delete, "contradicted", "a"),
        (claimed_after_a_delete, "unheeded", "a"),
        (assigned_after_a_delete, "unheeded", "a"),
        (claimed_elsewhere_after_a_delete, "unheeded", "b"),
        (charged_on_after_a_delete, "unheeded", "a"),
    ],
)
def test_a_breach_written_into_the_record_is_found(breach, kind, subject):
    assert (kind, subject) in kinds(breach(sound()))


def stopped_after_a_delete(seen):
    return withdrawn_at(stopped(seen), "a", "charging", 7.0)


def withdrawn_without_an_answer(seen):
    return stopped(seen)._replace(withdrawing=[*seen.withdrawing, Withdrawing("a", 7.0)])


def taken_over_after_a_delete(seen):
    """A takeover goes on with a session, and is no beginning."""
    history = [*seen.histories["a"][:3], line(8.5, "charging", "north", 1, 4), line(9, "completed", "north", 1, 4)]
    return withdrawn_at(with_history(seen, "a", *history), "a", "charging", 7.0)


def interrupted_too_often(seen):
    """Each interruption is a tenure that was lost."""
    tenures = [line(3 + n / 10, "charging", "north", 1, 3 + n) for n in range(INTERRUPTIONS_MAX + 1)]
    history = [*seen.histories["a"][:2], *tenures, line(9, "failed", "north", 1, 3 + INTERRUPTIONS_MAX)]
    row = with_row(seen, "a", status="failed", interruptions=INTERRUPTIONS_MAX + 1)
    return with_history(row, "a", *history)


def untold_because_its_client_gave_up(seen):
    return told_of_nobody(seen)._replace(given_up={"key-b"})


def after_a_step_of_the_wall_clock(seen):
    """The offset was larger at another moment of the run, so that nothing follows from the dates of the history."""
    return claimed_elsewhere_after_a_delete(seen)._replace(terms=seen.terms._replace(wall_offset_s=OFFSET_S + 3_600))


@pytest.mark.parametrize(
    "change",
    [
        stopped_after_a_delete,
        withdrawn_without_an_answer,
        taken_over_after_a_delete,
        interrupted_too_often,
        untold_because_its_client_gave_up,
        after_a_step_of_the_wall_clock,
    ],
)
def test_what_may_happen_is_not_found(change):
    assert findings(change(sound())) == []


def test_two_who_charge_at_one_substation_at_once_are_found_and_neighbours_in_time_or_place_are_not():
    heir = Holder("north", 4, "73")
    apart = [Busy(EAST, 1.0, 9.0), Busy(NORTH, 1.0, 5.0), Busy(NORTH, 5.5, 6.0), Busy(heir, 6.0, 7.0)]
    assert list(twins(apart)) == []
    [found] = twins([*apart, Busy(NORTH, 6.9, 8.0)])
    assert (found.kind, found.subject) == ("two holders", "north")


def test_a_finding_says_what_whose_and_how():
    assert str(Finding("lost", "a", "gone")) == "lost: a: gone"
