"""A ledger that would keep no history, lose its tables in a crash or keep a request twice is not used."""

import asyncio
import contextlib

import pytest
from harness.ledger import Ledger, asked, changed, looking_into, opened
from harness.postgres import PASSWORD
from harness.refused_ledger import refused

from services.cli.checks import Finding
from services.errors import LedgerUnavailable, Misconfigured
from services.ledger import schema

PATIENCE_S = 20
KEEPS_NO_HISTORY = "has triggers of the table request that are disabled or missing, so that it keeps no history"
ENABLE = "ALTER TABLE request ENABLE TRIGGER USER, or restore the whole backup where they are missing"
COPY = "put a whole copy of the ledger there, as SQLite's `.backup` makes it"
POSTGRES = {
    "ALTER TABLE request DISABLE TRIGGER ALL": (
        f"{KEEPS_NO_HISTORY} (request_accepted, request_changed, request_in_order)",
        ENABLE,
        "ALTER TABLE request ENABLE TRIGGER USER",
    ),
    "ALTER TABLE request ENABLE REPLICA TRIGGER request_changed": (
        f"{KEEPS_NO_HISTORY} (request_changed)",
        ENABLE,
        "ALTER TABLE request ENABLE ALWAYS TRIGGER request_changed",
    ),
    "DROP TRIGGER request_accepted ON request": (
        f"{KEEPS_NO_HISTORY} (request_accepted)",
        ENABLE,
        "CREATE TRIGGER request_accepted AFTER INSERT ON request FOR EACH ROW EXECUTE FUNCTION request_history()",
    ),
    "ALTER TABLE probe RENAME TO probe_of_old; ALTER TABLE substation RENAME TO substation_of_old": (
        "lacks tables of the ledger (probe, substation)",
        "restore the whole backup",
        "ALTER TABLE probe_of_old RENAME TO probe; ALTER TABLE substation_of_old RENAME TO substation",
    ),
    "ALTER TABLE request RENAME TO request_of_old": (
        "lacks tables of the ledger (request)",
        "restore the whole backup",
        "ALTER TABLE request_of_old RENAME TO request",
    ),
    "ALTER TABLE request SET UNLOGGED": (
        "has the unlogged table request, which a crash empties",
        "ALTER TABLE request SET LOGGED",
        "ALTER TABLE request SET LOGGED",
    ),
    "ALTER TABLE substation SET UNLOGGED": (
        "has the unlogged table substation, which a crash empties",
        "ALTER TABLE substation SET LOGGED",
        "ALTER TABLE substation SET LOGGED",
    ),
    "ALTER TABLE request DROP CONSTRAINT request_idempotency_key_key": (
        "has no valid unique index on request (idempotency_key), so that it may keep a request twice",
        "CREATE UNIQUE INDEX ON request (idempotency_key)",
        "CREATE UNIQUE INDEX ON request (idempotency_key)",
    ),
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'request_id_key'::regclass": (
        "has no valid unique index on request (id), so that it may keep a request twice",
        "CREATE UNIQUE INDEX ON request (id)",
        "REINDEX INDEX request_id_key",
    ),
}
ALSO_NOT_UNIQUE = (
    "ALTER TABLE request ADD UNIQUE (idempotency_key) DEFERRABLE",
    "CREATE UNIQUE INDEX ON request (idempotency_key) WHERE idempotency_key > 'k'",
    "CREATE UNIQUE INDEX ON request (idempotency_key, arrival)",
    "CREATE INDEX ON request (idempotency_key)",
)


async def test_a_restore_that_broke_off_before_the_first_row_is_told_as_such(postgres_url):
    async with opened(postgres_url):
        pass
    changed(postgres_url, "DROP TABLE substation, transition; DELETE FROM meta")

    assert await refused(postgres_url, PASSWORD) == (
        Finding.MISCONFIGURED,
        f"{postgres_url.rpartition('@')[2]} has an empty table meta, as after a restore that broke off",
        "restore the whole backup",
    )


@pytest.mark.parametrize("damage", POSTGRES)
async def test_a_damaged_database_is_told_while_it_is_used_refused_at_a_start_and_used_again_when_healed(
    postgres_url, damage
):
    cause, cure, heal = POSTGRES[damage]
    where = postgres_url.rpartition("@")[2]
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        changed(postgres_url, damage)
        await assert_refused_while_in_use(ledger, f"{where} {cause}: {cure}")

        assert await refused(postgres_url, PASSWORD) == (Finding.MISCONFIGURED, f"{where} {cause}", cure)

        changed(postgres_url, heal)
        await assert_used_again(ledger)


async def test_a_key_is_unique_only_by_an_index_that_a_conflict_is_found_with(postgres_url):
    async with opened(postgres_url):
        pass
    changed(postgres_url, "ALTER TABLE request DROP CONSTRAINT request_idempotency_key_key")
    for statement in ALSO_NOT_UNIQUE:
        changed(postgres_url, statement)

    with pytest.raises(Misconfigured, match=r"no valid unique index on request \(idempotency_key\)"):
        async with opened(postgres_url):
            pass


async def test_a_session_whose_triggers_stay_silent_is_told_after_a_reconnect(postgres, postgres_url):
    database = postgres_url.rpartition("/")[2]
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("first")
        postgres.execute(f"ALTER DATABASE {database} SET session_replication_role = replica")
        asked(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )

        with pytest.raises(LedgerUnavailable) as caught:
            await ledger.accepted("second")

        assert str(caught.value) == (
            f"{postgres_url.rpartition('@')[2]} sets session_replication_role to replica, so that triggers keep no "
            "history: ALTER DATABASE or ALTER ROLE with RESET session_replication_role"
        )
        await connection.look()
        assert connection.fault == str(caught.value)
    assert asked(postgres_url, "SELECT id FROM request") == [("first",)]


@pytest.fixture
async def file(tmp_path):
    path = tmp_path / "ledger.sqlite"
    async with opened(path) as connection:
        yield path, Ledger(connection)


TRIGGERS = {text.split()[2]: text for text in schema.SQLITE if "CREATE TRIGGER" in text}


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_a_file_without_a_trigger_is_told_while_it_is_used_refused_at_a_start_and_used_again_when_healed(
    file, trigger
):
    path, ledger = file
    changed(path, f"DROP TRIGGER {trigger}")
    cause = f"{path} lacks a trigger of the table request, so that it keeps no history ({trigger})"
    await assert_refused_while_in_use(ledger, f"{cause}: {COPY}")

    assert await refused(f"sqlite:///{path}", "secret") == (Finding.MISCONFIGURED, cause, COPY)

    changed(path, TRIGGERS[trigger])
    await assert_used_again(ledger)


async def test_a_file_whose_table_was_made_anew_without_its_keys_is_refused(file):
    path, ledger = file
    with looking_into(path) as execute:
        for statement in (
            "CREATE TABLE anew AS SELECT * FROM request",
            "DROP TABLE request",
            "ALTER TABLE anew RENAME TO request",
            "CREATE UNIQUE INDEX ids ON request (id)",
            "CREATE UNIQUE INDEX some_keys ON request (idempotency_key) WHERE idempotency_key > 'k'",
            "CREATE UNIQUE INDEX pairs ON request (idempotency_key, arrival)",
            *TRIGGERS.values(),
        ):
            execute(statement)
    cause = f"{path} has no unique index on a column of request, so that it may keep a request twice (idempotency_key)"

    await assert_refused_while_in_use(ledger, f"{cause}: {COPY}")
    assert await refused(f"sqlite:///{path}", "secret") == (Finding.MISCONFIGURED, cause, COPY)


async def assert_refused_while_in_use(ledger, expected):
    """Both a look and a write tell it, at the latest after their next look at the tables."""
    async with asyncio.timeout(PATIENCE_S):
        while ledger.connection.fault is None:
            await ledger.connection.look()
    assert ledger.connection.fault == expected
    with pytest.raises(LedgerUnavailable) as caught:
        await probe_until_refused(ledger)
    assert str(caught.value) == expected


async def probe_until_refused(ledger):
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await ledger.connection.probe()


async def assert_used_again(ledger):
    with contextlib.suppress(LedgerUnavailable):
        await ledger.connection.probe()
    await ledger.connection.look()
    assert ledger.connection.fault is None
    await ledger.accepted("again")
    assert [one.status for one in await ledger.history("again")] == ["accepted"]
