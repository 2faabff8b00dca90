"""A rule of the operator's own in the database forbids one row: that row fails alone, and is told by its id."""

import asyncio
import traceback

import psycopg
import pytest
from harness.ledger import FORBIDDEN, Ledger, changed, let_the_wait_pass, new_request, opened, registration
from structlog.testing import capture_logs

from services.errors import LedgerRefused, LedgerUnavailable
from services.ledger.records import Accepted, Assignment, Refused
from services.messages import Hint

IDS = [f"r{number:02d}" for number in range(100)]


def code(path):
    return "23514" if isinstance(path, str) else "SQLITE_CONSTRAINT_TRIGGER"


def new(request_id):
    return new_request(request_id, vehicle_id=FORBIDDEN if request_id == IDS[42] else f"EV-{request_id}")


def assert_told_once(said, operation, request_id, path):
    assert [line for line in said if line["log_level"] == "error"] == [
        {"event": "row_refused", "log_level": "error", "operation": operation, "id": request_id, "code": code(path),
         "times": 1, "cause": f"{'PostgreSQL' if isinstance(path, str) else 'SQLite'}: {code(path)}"}
    ]  # fmt: skip
    assert FORBIDDEN not in str(said)


async def test_of_a_hundred_requests_of_one_commit_the_forbidden_one_alone_is_refused(ledger, path, forbid):
    forbid("INSERT", "request", f"NEW.vehicle_id = '{FORBIDDEN}'")

    with capture_logs() as said:
        answers = {one.asked: one for one in await ledger.intake.accept([new(one) for one in IDS])}

    assert answers.pop(IDS[42]) == Refused(IDS[42], code(path))
    assert {type(one) for one in answers.values()} == {Accepted}
    assert sorted(answers) == [one for one in IDS if one != IDS[42]]
    assert [one for one in IDS if await ledger.intake.request(one) is None] == [IDS[42]]
    assert_told_once(said, "accept", IDS[42], path)


async def test_of_a_hundred_requests_at_once_the_forbidden_one_alone_fails(ledger, path, forbid):
    forbid("INSERT", "request", f"NEW.vehicle_id = '{FORBIDDEN}'")

    with capture_logs() as said:
        answers = await asyncio.gather(*(ledger.intake.accept([new(one)]) for one in IDS), return_exceptions=True)

    refused = answers.pop(42)
    assert FORBIDDEN not in "".join(traceback.format_exception(refused))
    assert (type(refused), refused.code) == (LedgerRefused, code(path))
    assert [one.request_id for [one] in answers] == [one for one in IDS if one != IDS[42]]
    assert_told_once(said, "accept", IDS[42], path)


async def test_an_assignment_that_is_refused_leaves_the_others_assigned(ledger, path, forbid):
    await ledger.intake.accept([new(one) for one in IDS])
    forbid("UPDATE", "request", f"NEW.vehicle_id = '{FORBIDDEN}'")

    assigned = await ledger.dispatch.assign([Assignment(one, 0, "north") for one in IDS])

    assert assigned == {one for one in IDS if one != IDS[42]}
    claims = await ledger.charging.claim([Hint(one, 1) for one in IDS[40:44]], "north", 1, 4)
    assert sorted(one.request_id for one in claims.claimed) == ["r40", "r41", "r43"]


async def test_an_expiry_that_is_refused_leaves_the_others_expired_and_is_told_once(ledger, path, forbid):
    await ledger.intake.accept([new(one) for one in IDS[40:44]])
    for one in IDS[40:44]:
        let_the_wait_pass(path, one)
    forbid("UPDATE", "request", f"NEW.vehicle_id = '{FORBIDDEN}'")

    with capture_logs() as said:
        assert sorted(await ledger.sweeping.expire()) == ["r40", "r41", "r43"]
        for _ in range(2):
            with pytest.raises(LedgerRefused):
                await ledger.sweeping.expire()

    assert [(line["operation"], line["id"]) for line in said] == [("expire", "deadline"), ("expire_named", IDS[42])]


async def test_a_beat_that_is_refused_stops_no_other_substation(ledger, path, forbid):
    await ledger.take(registration("west"))
    forbid("UPDATE", "substation", "NEW.id = 'south' AND NEW.renewals > OLD.renewals")

    answers = await asyncio.gather(*(ledger.beat(at=one) for one in ("north", "south", "west")), return_exceptions=True)

    assert [getattr(one, "substation", type(one)) for one in answers] == ["north", LedgerRefused, "west"]


async def test_a_claim_never_takes_more_than_its_places_though_one_of_its_rows_is_refused(ledger, path, forbid):
    await ledger.take(registration("east", connectors=8))
    await ledger.assigned(*(one for one in IDS[40:48] if one != IDS[42]), to="east")
    await ledger.assigned(IDS[42], to="east", vehicle_id=FORBIDDEN, priority=9)
    forbid("UPDATE", "request", f"NEW.vehicle_id = '{FORBIDDEN}'")

    with capture_logs() as said:
        claims = await ledger.charging.claim([Hint(one, 1) for one in IDS[40:48]], "east", 1, 3)

    assert len(claims.claimed) == 3
    assert {one.request_id for one in claims.claimed} | {one.request_id for one in claims.held} == {
        one for one in IDS[40:48] if one != IDS[42]
    }
    assert_told_once(said, "claim", IDS[42], path)
    with pytest.raises(LedgerRefused):
        await ledger.charging.claim([Hint(IDS[42], 1)], "east", 1, 3)


@pytest.mark.parametrize("key", [None, "a key"])
async def test_a_request_that_a_trigger_drops_without_an_error_is_refused_alone(ledger, forbid, key):
    forbid("INSERT", "request", f"NEW.vehicle_id = '{FORBIDDEN}'", aloud=False)

    answers = await ledger.intake.accept(
        [new("r41"), new_request("r42", vehicle_id=FORBIDDEN, idempotency_key=key, body_hash=key), new("r43")]
    )

    assert [(type(one), one.asked) for one in answers] == [(Accepted, "r41"), (Accepted, "r43"), (Refused, "r42")]
    assert answers[2].code == "no row"


async def test_postgresql_tells_of_a_refused_row_its_code_and_constraint_and_no_words(postgres_url):
    """The server's words quote values (22P02, 22003), and a trigger's are the operator's own."""
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        changed(postgres_url, f"ALTER TABLE request ADD CONSTRAINT no_such_car CHECK (vehicle_id <> '{FORBIDDEN}')")
        changed(postgres_url, "CREATE FUNCTION quoting() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                              "RAISE EXCEPTION 'not %%', NEW.vehicle_id; END $$")  # fmt: skip
        changed(postgres_url, "CREATE TRIGGER quoting BEFORE INSERT ON request FOR EACH ROW "
                              "WHEN (NEW.id = 'quoted') EXECUTE FUNCTION quoting()")  # fmt: skip
        with capture_logs() as said:
            for request_id, cause in (("a", "23514, constraint no_such_car"), ("quoted", "P0001")):
                with pytest.raises(LedgerRefused) as refused:
                    await ledger.intake.accept([new_request(request_id, vehicle_id=FORBIDDEN)])
                assert str(refused.value) == f"PostgreSQL: {cause}"
        assert FORBIDDEN not in str(said)
        assert connection.fault is None


async def test_a_read_that_meets_a_data_error_is_no_refusal_and_tells_no_value(path):
    failing, said = "SELECT zeroblob(2000000000), :value", "SQLite: SQLITE_TOOBIG"
    if isinstance(path, str):
        failing, said = "SELECT CAST(:value AS bigint)", "PostgreSQL: 22P02"
    async with opened(path) as connection:
        with pytest.raises(LedgerUnavailable) as caught:
            await connection.read(lambda it: it.execute(failing, value=FORBIDDEN))

    assert (type(caught.value), str(caught.value)) == (LedgerUnavailable, said)
    assert FORBIDDEN not in "".join(traceback.format_exception(caught.value))


async def test_a_text_that_is_too_long_for_an_index_fails_alone_on_postgresql(postgres_url):
    """An index of PostgreSQL's holds a third of a page; SQLite has no such limit."""
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        with psycopg.connect(postgres_url) as other:
            other.execute("CREATE INDEX vehicles ON request (vehicle_id)")
        long = "".join(chr(33 + (number * number) % 90) + chr(500 + number % 7000) for number in range(9_000))

        answers = await ledger.intake.accept([new_request("a"), new_request("b", vehicle_id=long), new_request("c")])

    assert [(type(one), one.asked) for one in answers] == [(Accepted, "a"), (Accepted, "c"), (Refused, "b")]
    assert answers[2].code == "54000"
