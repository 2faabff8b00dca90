"""Rules of the operator's own on PostgreSQL: whatever code they raise, only their row fails, without their words."""

import pytest
from harness.ledger import Ledger, asked, changed, new_request, opened
from harness.postgres import PASSWORD
from structlog.testing import capture_logs

from services.errors import LedgerRefused, LedgerUnavailable
from services.ledger.records import Accepted, Refused

FORBIDDEN = "EV-FORBIDDEN-7"
OUR_SESSIONS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'evenload'"


@pytest.fixture
def where(where_on_postgres):
    return where_on_postgres


def rule(path, body, *, trigger="BEFORE INSERT ON request FOR EACH ROW", condition=f"NEW.vehicle_id = '{FORBIDDEN}'"):
    """Have a trigger run `body` for the rows that a condition holds for."""
    changed(path, f"CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$")
    kind = "CONSTRAINT TRIGGER" if "DEFERRED" in trigger else "TRIGGER"
    changed(path, f"CREATE {kind} rule {trigger} WHEN ({condition}) EXECUTE FUNCTION rule()")


def raising(code):
    return f"RAISE SQLSTATE '{code}' USING MESSAGE = 'not ' || NEW.vehicle_id"


async def answers_to_a_batch(ledger, batch=""):
    forbidden = {"vehicle_id": FORBIDDEN}
    requests = [new_request(f"{batch}{one}", **(forbidden if one == "b" else {})) for one in "abc"]
    return {one.asked: one for one in await ledger.intake.accept(requests)}


async def assert_refused_alone(ledger, path, code, batch=""):
    """The batch's second row is refused with `code` and the others kept, on the sessions that were there before."""
    sessions = asked(path, OUR_SESSIONS)
    with capture_logs() as said:
        answers = await answers_to_a_batch(ledger, batch)

    assert {one: type(answer) for one, answer in answers.items()} == {
        f"{batch}a": Accepted, f"{batch}b": Refused, f"{batch}c": Accepted
    }  # fmt: skip
    assert answers[f"{batch}b"].code == code
    assert [(line["event"], line["cause"]) for line in said] == [("row_refused", f"PostgreSQL: {code}")]
    assert ledger.connection.fault is None
    assert asked(path, OUR_SESSIONS) == sessions


@pytest.mark.parametrize(
    "code", ["EV001", "45000", "PT422", "09000", "27000", "38000", "42501", "20000", "08006", "25006", "53100", "57P01",
             "XX000"]
)  # fmt: skip
async def test_whatever_code_a_trigger_raises_its_row_alone_is_refused(ledger, path, code):
    rule(path, raising(code))

    await assert_refused_alone(ledger, path, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("CASE WHEN NEW.priority > 99 THEN NULL; END CASE", "20000"),
        ("ASSERT false, NEW.vehicle_id", "P0004"),
        ("BEGIN PERFORM 1 / 0; EXCEPTION WHEN OTHERS THEN RAISE; END", "22012"),
    ],
)
async def test_a_trigger_that_fails_on_a_row_by_itself_refuses_that_row(ledger, path, body, code):
    rule(path, body)

    await assert_refused_alone(ledger, path, code)


async def test_a_rule_that_is_judged_at_the_commit_refuses_its_row_alone(ledger, path):
    rule(path, raising("EV001"), trigger="AFTER INSERT ON request DEFERRABLE INITIALLY DEFERRED FOR EACH ROW")

    await assert_refused_alone(ledger, path, "EV001")


async def test_a_policy_refuses_its_row_alone_and_a_missing_right_fails_everybody(postgres, postgres_url):
    async with opened(postgres_url):
        pass
    changed(postgres_url, f"CREATE ROLE policed LOGIN PASSWORD '{PASSWORD}'")
    try:
        changed(postgres_url, "GRANT ALL ON ALL TABLES IN SCHEMA public TO policed")
        changed(postgres_url, "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO policed")
        changed(postgres_url, "ALTER TABLE request ENABLE ROW LEVEL SECURITY")
        changed(postgres_url, f"CREATE POLICY own ON request USING (true) WITH CHECK (vehicle_id <> '{FORBIDDEN}')")
        async with opened(postgres.url(postgres_url.rpartition("/")[2], "policed")) as connection:
            ledger = Ledger(connection)
            await assert_refused_alone(ledger, postgres_url, "42501")

            changed(postgres_url, "REVOKE INSERT ON request FROM policed")
            sessions = asked(postgres_url, OUR_SESSIONS)
            with pytest.raises(LedgerUnavailable) as caught:
                await answers_to_a_batch(ledger, "next-")
            assert (type(caught.value), str(caught.value)) == (
                LedgerUnavailable, "PostgreSQL: permission denied for table request"
            )  # fmt: skip
            assert asked(postgres_url, OUR_SESSIONS) == sessions
    finally:
        changed(postgres_url, "DROP OWNED BY policed")
        changed(postgres_url, "DROP ROLE policed")


async def test_a_trigger_that_asks_for_another_try_gets_it_and_its_words_are_never_told(ledger, path, monkeypatch):
    monkeypatch.setattr("services.ledger.postgres.RETRY_FOR_S", 0.1)
    changed(path, "CREATE SEQUENCE tries")
    rule(path, f"PERFORM nextval('tries'); {raising('40001')}")

    with pytest.raises(LedgerUnavailable) as caught:
        await answers_to_a_batch(ledger)

    assert not isinstance(caught.value, LedgerRefused)
    assert str(caught.value) == ledger.connection.fault == "PostgreSQL: a rule of the database raised 40001"
    assert asked(path, "SELECT last_value > 1 FROM tries") == [(True,)]


async def test_numbers_that_are_used_up_are_no_fault_of_the_row(ledger, path):
    changed(path, "ALTER SEQUENCE request_arrival_seq RESTART WITH 9223372036854775807")
    await ledger.accepted("last")
    sessions = asked(path, OUR_SESSIONS)

    with pytest.raises(LedgerUnavailable) as caught:
        await answers_to_a_batch(ledger)

    assert not isinstance(caught.value, LedgerRefused)
    assert str(caught.value).startswith("PostgreSQL: nextval: reached maximum value of sequence")
    assert asked(path, OUR_SESSIONS) == sessions


async def test_a_plan_that_a_changed_table_has_made_stale_is_left_with_its_session(ledger, path):
    for number in range(8):
        await ledger.accepted(f"a{number}")
    changed(path, "ALTER TABLE request ALTER COLUMN id TYPE varchar(200)")

    for number in range(3):
        await ledger.accepted(f"b{number}")

    assert ledger.connection.fault is None


async def test_a_statement_that_no_session_can_run_is_tried_on_one_more_and_told(ledger, path):
    changed(path, "CREATE SEQUENCE tries")
    rule(path, "PERFORM nextval('tries'); PERFORM no_such_function()")

    with pytest.raises(LedgerUnavailable) as caught:
        await answers_to_a_batch(ledger)

    assert (type(caught.value), str(caught.value)) == (
        LedgerUnavailable, "PostgreSQL: function no_such_function() does not exist"
    )  # fmt: skip
    assert asked(path, "SELECT last_value FROM tries") == [(2,)]
