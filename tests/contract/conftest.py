"""Ledgers for the contract tests; whatever a test did, every history must be sound afterwards."""

from functools import partial

import pytest
from harness.ledger import (
    Ledger,
    all_histories,
    changed,
    opened,
    registration,
)

from services.ledger.states import Reason, faults


@pytest.fixture(params=["sqlite", "postgres"])
def where(request, tmp_path):
    """Where a ledger may be made: a SQLite file, then the address of a PostgreSQL database."""
    is_file = request.param == "sqlite"
    return tmp_path / "new" / "ledger.sqlite" if is_file else request.getfixturevalue("where_on_postgres")


@pytest.fixture
def where_on_postgres(request):
    """A database: for a test that opens the ledger at once, one that has its tables already, else an empty one."""
    if "ledger" not in request.fixturenames:
        yield request.getfixturevalue("postgres_url")
        return
    with request.getfixturevalue("ledger_databases").lent() as url:
        yield url


@pytest.fixture
def path(where):
    """Where the ledger lies; whatever a test did to it, its histories must be sound afterwards."""
    yield where
    histories, last = all_histories(where)
    assert histories.keys() == last.keys()
    for request_id, history in histories.items():
        assert faults(history) == [], request_id
        assert history[-1].status == last[request_id]
        assert {one.reason for one in history} <= set(Reason)
        assert [one.at_ms for one in history] == sorted(one.at_ms for one in history)


@pytest.fixture
def execute(path):
    """Changes the ledger behind everybody's back."""

    return partial(changed, path)


@pytest.fixture
def forbid(path):
    """Have the database refuse an event on rows of a table for which a condition holds, or drop it without an error."""

    def forbid_(event, table, condition, *, aloud=True):
        name = f"forbidden_{event.split()[0]}_{table}"
        if isinstance(path, str):
            does = "RAISE check_violation USING MESSAGE = 'not here', DETAIL = NEW.*::text" if aloud else "RETURN NULL"
            changed(path, f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does}; END $$")
            changed(path, f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN ({condition}) "
                          f"EXECUTE FUNCTION {name}()")  # fmt: skip
        else:
            does = "RAISE(ABORT, 'not here')" if aloud else "RAISE(IGNORE)"
            changed(path, f"CREATE TRIGGER {name} BEFORE {event} ON {table} WHEN {condition} "
                          f"BEGIN SELECT {does}; END")  # fmt: skip

    return forbid_


@pytest.fixture
async def ledger(path):
    async with opened(path) as connection:
        one = Ledger(connection)
        await one.take(registration("north"), registration("south"))
        yield one


@pytest.fixture
async def rival(path, ledger):
    """Another process on the same ledger."""
    async with opened(path) as connection:
        yield Ledger(connection)
