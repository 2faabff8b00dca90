"""A PostgreSQL ledger that is dropped, replaced or set back while in use: nothing is written into the wrong one."""

import contextlib
import re

import psycopg
import pytest
from harness.ledger import MANY, Ledger, asked, changed, new_request, opened
from harness.postgres import LEDGER_TEMPLATE, fresh_database
from structlog.testing import capture_logs

from services.errors import LedgerUnavailable
from services.ledger import schema
from services.ledger.provision import provision

CURE = "put the right one back, or restart all services to go on with what lies there"


@pytest.fixture
def url(postgres):
    with fresh_database(postgres, with_ledger=True) as one:
        yield one


@pytest.fixture
def execute(postgres, ledger_databases, url):
    """Runs statements beside the database, `{name}` its name, when nobody is connected to it."""
    name = url.rpartition("/")[2]

    def run(*statements):
        for statement in statements:
            postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE '{name}%'")
            postgres.execute(statement.format(name=name, template=LEDGER_TEMPLATE))

    yield run
    for suffix in ("_kept", "_backup"):
        postgres.execute(f"DROP DATABASE IF EXISTS {name}{suffix} WITH (FORCE)")


@contextlib.contextmanager
def dropped(execute, _url, _ledger):
    execute("ALTER DATABASE {name} RENAME TO {name}_kept")
    yield 'PostgreSQL: .*database "t.*" does not exist'
    execute("ALTER DATABASE {name}_kept RENAME TO {name}")


@contextlib.contextmanager
def emptied(execute, url, _ledger):
    execute("ALTER DATABASE {name} RENAME TO {name}_kept", "CREATE DATABASE {name}")
    yield f"{place(url)} holds no ledger any more: {CURE}"
    execute("DROP DATABASE {name}", "ALTER DATABASE {name}_kept RENAME TO {name}")


@contextlib.contextmanager
def made_anew(execute, url, _ledger):
    execute("ALTER DATABASE {name} RENAME TO {name}_kept", "CREATE DATABASE {name} TEMPLATE {template}")
    yield f"{place(url)} is another ledger than the one that this process uses: {CURE}"
    execute("DROP DATABASE {name}", "ALTER DATABASE {name}_kept RENAME TO {name}")


@contextlib.contextmanager
def another_schema(_execute, url, _ledger):
    """The connections live on: nobody ends them."""
    changed(url, "ALTER SCHEMA public RENAME TO kept")
    changed(url, "CREATE SCHEMA public")
    yield f"{place(url)} holds no ledger any more: {CURE}"
    changed(url, "DROP SCHEMA public CASCADE")
    changed(url, "ALTER SCHEMA kept RENAME TO public")


@contextlib.contextmanager
def another_ledger_in_its_schema(_execute, url, _ledger):
    changed(url, "ALTER SCHEMA public RENAME TO kept")
    changed(url, "CREATE SCHEMA public")
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in schema.POSTGRES:
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('ledger_id', 'x')")
    yield f"{place(url)} is another ledger than the one that this process uses: {CURE}"
    changed(url, "DROP SCHEMA public CASCADE")
    changed(url, "ALTER SCHEMA kept RENAME TO public")


def place(url):
    return url.rpartition("@")[2]


async def assert_lost_and_found(ledger, url, trouble):
    with trouble as cause:
        for call in (lambda: ledger.accepted("lost"), ledger.intake.counts, ledger.connection.probe):
            with pytest.raises(LedgerUnavailable, match=cause):
                await call()
        await ledger.connection.look()
        assert re.search(cause, ledger.connection.fault)

    await ledger.connection.look()
    await ledger.connection.probe()
    assert ledger.connection.fault is None
    await ledger.accepted("last")
    assert {row[0] for row in asked(url, "SELECT id FROM request")} >= {"first", "last"}
    assert await ledger.intake.request("lost") is None


@pytest.mark.parametrize("trouble", [dropped, emptied, made_anew, another_schema, another_ledger_in_its_schema])
async def test_while_the_right_database_is_away_nothing_is_written_or_read_and_all_goes_on_when_it_is_back(
    url, execute, trouble
):
    async with opened(url) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("first")

        await assert_lost_and_found(ledger, url, trouble(execute, url, ledger))


async def test_a_database_that_was_set_back_is_not_written_until_the_newer_one_is_back(url, execute):
    @contextlib.contextmanager
    def restored():
        execute("ALTER DATABASE {name} RENAME TO {name}_kept", "ALTER DATABASE {name}_backup RENAME TO {name}")
        yield rf"{place(url)} was restored from a backup, and lacks what .* \(its history ends at 1, and ended at 2\)"
        execute("DROP DATABASE {name}", "ALTER DATABASE {name}_kept RENAME TO {name}")

    async with opened(url) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("first")
        execute("CREATE DATABASE {name}_backup TEMPLATE {name}")
        await ledger.accepted("later")

        await assert_lost_and_found(ledger, url, restored())
        assert await ledger.status("later")


async def test_old_history_that_is_deleted_is_no_older_ledger(url):
    async with opened(url) as connection:
        ledger = Ledger(connection)
        await ledger.accepted(*MANY)
        changed(url, "DELETE FROM transition")
        changed(url, "DELETE FROM request")
        await ledger.accepted("later")
        assert await ledger.status("later")


async def test_a_user_without_the_right_to_the_mark_works_and_is_told_once(url):
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(provision({"gateway": "secret"}))
        owner.execute("REVOKE ALL ON SEQUENCE transition_number_seq FROM evenload_gateway")
    by_the_gateway = url.replace("postgres:tests-own@", "evenload_gateway:secret@")
    with capture_logs() as logs:
        async with opened(by_the_gateway) as connection:
            for one in ("a", "b"):
                await Ledger(connection).intake.accept([new_request(one)])

    assert [one["cure"] for one in logs if one["event"] == "ledger_mark_not_readable"] == [
        "run the SQL of `python -m services.ledger.provision` again, as the owner"
    ]
