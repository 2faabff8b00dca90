"""What server, database, role and environment prescribe for every client changes nothing of what the ledger does."""

import contextlib
import os
import uuid

import psycopg
import pytest
from harness.ledger import Ledger, asked, opened, registration
from harness.postgres import PASSWORD, find_postgres, running_postgres
from structlog.testing import capture_logs

from services.cli.checks import Finding
from services.cli.checks_ledger import check_ledger
from services.errors import Misconfigured
from services.ledger.committer import Operation
from services.ledger.postgres_connection import connect
from services.ledger.postgres_setup import parse_address
from services.ledger.states import Status

VEHICLE = "ÉV-日本-🚗"
HOSTILE = {
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "client_min_messages": "error",
    "DateStyle": "'SQL, DMY'",
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "extra_float_digits": "-15",
    "idle_in_transaction_session_timeout": "1",
    "IntervalStyle": "sql_standard",
    "lock_timeout": "1",
    "plan_cache_mode": "force_generic_plan",
    "row_security": "off",
    "search_path": "nowhere",
    "standard_conforming_strings": "off",
    "statement_timeout": "100",
    "synchronous_commit": "off",
    "TimeZone": "'Asia/Kathmandu'",
    "transform_null_equals": "on",
}
AMBIENT = {
    "PGAPPNAME": "somebody",
    "PGCLIENTENCODING": "SQL_ASCII",
    "PGCONNECT_TIMEOUT": "no number",
    "PGDATESTYLE": "nonsense",
    "PGGEQO": "nonsense",
    "PGHOSTADDR": "192.0.2.1",
    "PGOPTIONS": "-c default_transaction_read_only=on -c search_path=nowhere",
    "PGTARGETSESSIONATTRS": "standby",
    "PGTZ": "nonsense",
}


def server_version(url):
    with psycopg.connect(url) as connection:
        return connection.info.server_version // 10_000


def _settings(transaction, _rows):
    """What holds inside a transaction, and how long the server itself would let it sleep."""
    shown = transaction.execute("SELECT name, setting FROM pg_settings")
    transaction.execute("SELECT pg_sleep(0.2)")
    return [{"settings": "all", **{row["name"]: row["setting"] for row in shown}}]


SETTINGS = Operation("settings", "settings", _settings)


async def settings_of_a_write(connection):
    [shown] = await connection.write(SETTINGS, [{"settings": "all"}])
    return shown


async def live_a_life(connection):
    """One request from its acceptance to its end."""
    ledger = Ledger(connection)
    await ledger.take(registration("north"))
    assert await ledger.ended("a") == {"a": 1}
    await ledger.accepted("b", vehicle_id=VEHICLE)
    assert [(one.vehicle_id, one.status) for one in await ledger.intake.listed(
        before=2**62, most=9, status=None, substation=None
    )] == [(VEHICLE, Status.ACCEPTED), ("EV-1", Status.COMPLETED)]  # fmt: skip
    assert [one.status for one in await ledger.history("a")] == ["accepted", "assigned", "charging", "completed"]


def findings(url, monkeypatch):
    monkeypatch.setenv("EVENLOAD_SPEED", "60")
    return {one.check: one for one in check_ledger(url)}


def sound(found):
    """Whether all is well but for the disk, which the tests' own server does not wait for."""
    return {name for name, one in found.items() if one.finding is not Finding.OK} == {"ledger disk"}


async def test_what_the_database_prescribes_changes_nothing(postgres, postgres_url, monkeypatch):
    database = postgres_url.rpartition("/")[2]
    if server_version(postgres_url) >= 17:
        postgres.execute(f"ALTER DATABASE {database} SET transaction_timeout = 100")
    for name, value in HOSTILE.items():
        postgres.execute(f"ALTER DATABASE {database} SET {name} = {value}")

    async with opened(postgres_url) as connection:
        await live_a_life(connection)
        shown = await settings_of_a_write(connection)

    expected = {
        "client_encoding": "UTF8",
        "client_min_messages": "warning",
        "idle_in_transaction_session_timeout": "2000",
        "lock_timeout": "3000",
        "plan_cache_mode": "force_custom_plan",
        "search_path": "public, pg_temp",
        "statement_timeout": "4000",
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
        "transaction_read_only": "off",
    }
    assert {name: shown[name] for name in expected} == expected
    assert sound(findings(postgres_url, monkeypatch))


async def test_a_database_that_promises_more_than_we_do_keeps_its_promise(postgres, postgres_url):
    database = postgres_url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {database} SET synchronous_commit = remote_apply")

    async with opened(postgres_url) as connection:
        assert (await settings_of_a_write(connection))["synchronous_commit"] == "remote_apply"


async def test_variables_of_libpqs_that_would_change_meaning_are_ignored(postgres_url, monkeypatch):
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)

    async with opened(postgres_url) as connection:
        await live_a_life(connection)

    monkeypatch.undo()
    [(vehicle,)] = asked(postgres_url, "SELECT vehicle_id FROM request WHERE id = 'b'")
    assert vehicle == VEHICLE


async def test_connecting_changes_nothing_of_the_environment_which_other_threads_read(postgres_url, monkeypatch):
    parse_address(postgres_url)
    monkeypatch.setenv("PGTZ", "UTC")

    connect(postgres_url).close()

    assert os.environ["PGTZ"] == "UTC"


async def test_a_server_that_is_too_old_is_refused_by_its_version(postgres_url, monkeypatch):
    monkeypatch.setattr(psycopg.ConnectionInfo, "server_version", 120_022)

    where = postgres_url.rpartition("@")[2]
    with pytest.raises(Misconfigured) as refused:
        async with opened(postgres_url):
            pass

    cause = f"EVENLOAD_LEDGER_URL: {where} refuses (the server is PostgreSQL 12)"
    assert str(refused.value) == f"{cause}: use PostgreSQL 13 or a later version"
    found = findings(postgres_url, monkeypatch)["ledger"]
    assert (found.finding, found.said, found.cure) == (
        Finding.MISCONFIGURED, cause, "use PostgreSQL 13 or a later version"
    )  # fmt: skip


async def test_a_start_that_waits_for_anothers_tables_is_told_to_wait(postgres_url):
    with psycopg.connect(postgres_url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [0x65_76_65_6E])
        with pytest.raises(Misconfigured) as refused:
            async with opened(postgres_url, startup_timeout_s=0.1):
                pass

    assert str(refused.value) == (
        f"EVENLOAD_LEDGER_URL: {postgres_url.rpartition('@')[2]} refuses (canceling statement due to lock timeout): "
        "wait until the other start has made the tables, or end the session that holds their lock"
    )


async def test_what_the_address_leaves_out_is_found_as_by_psql(postgres, postgres_url, monkeypatch, tmp_path):
    database = postgres_url.rpartition("/")[2]
    passwords, services = tmp_path / "passwords", tmp_path / "services"
    passwords.write_text(f"127.0.0.1:{postgres.port}:*:postgres:{PASSWORD}\n")
    passwords.chmod(0o600)
    services.write_text(f"[ledger]\nhost=127.0.0.1\nport={postgres.port}\nuser=postgres\ndbname={database}\n")
    monkeypatch.setenv("PGPASSFILE", str(passwords))
    monkeypatch.setenv("PGSERVICEFILE", str(services))

    async with opened("postgresql:///?service=ledger") as connection:
        await Ledger(connection).accepted("by service")
    for name, value in {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port), "PGUSER": "postgres"}.items():
        monkeypatch.setenv(name, value)
    async with opened(f"postgresql:///{database}") as connection:
        await Ledger(connection).accepted("by variables")

    assert asked(postgres_url, "SELECT id FROM request ORDER BY id") == [("by service",), ("by variables",)]


@contextlib.contextmanager
def database_of(postgres, encoding):
    name = f"t{uuid.uuid4().hex[:12]}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'")
    try:
        yield postgres.url(name)
    finally:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_database_that_cannot_hold_every_text_is_refused_with_its_cure(postgres, encoding, monkeypatch):
    with database_of(postgres, encoding) as url:
        with pytest.raises(Misconfigured) as refused:
            async with opened(url):
                pass
        found = findings(url, monkeypatch)["ledger"]

    where = url.rpartition("@")[2]
    cause = f"EVENLOAD_LEDGER_URL: {where} has the encoding {encoding}, which cannot hold every text"
    assert str(refused.value) == f"{cause}: make the database with `createdb -T template0 -E UTF8`"
    assert (found.finding, found.said) == (Finding.MISCONFIGURED, cause)
    assert found.cure == "make the database with `createdb -T template0 -E UTF8`"


async def test_a_database_whose_triggers_would_stay_silent_is_refused(postgres, postgres_url, monkeypatch):
    database = postgres_url.rpartition("/")[2]
    async with opened(postgres_url):
        pass
    postgres.execute(f"ALTER DATABASE {database} SET session_replication_role = replica")

    with pytest.raises(Misconfigured, match="sets session_replication_role to replica, so that triggers keep no hist"):
        async with opened(postgres_url):
            pass
    assert findings(postgres_url, monkeypatch)["ledger"].finding is Finding.MISCONFIGURED


async def test_a_server_that_ends_idle_connections_is_connected_to_anew_unseen(postgres, postgres_url):
    database = postgres_url.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {database} SET idle_session_timeout = 200")
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        for number in range(2):
            await ledger.accepted(f"r{number}")
            with psycopg.connect(postgres.url(), autocommit=True) as other:
                while other.execute("SELECT 1 FROM pg_stat_activity WHERE datname = %s", [database]).fetchone():
                    pass

        assert await ledger.status("r1") == "accepted"
        assert connection.fault is None


NOT_SYNCED = "has fsync turned off, so that a crash of its host loses what was accepted"
SYNC = "set fsync = on in postgresql.conf, and reload it"


async def test_a_server_that_does_not_wait_for_its_disk_is_told_once_and_by_the_doctor(postgres_url, monkeypatch):
    with capture_logs() as said:
        async with opened(postgres_url) as connection:
            await Ledger(connection).accepted("a")

    cause = f"{postgres_url.rpartition('@')[2]} {NOT_SYNCED}"
    assert [(one["cause"], one["cure"]) for one in said if one["event"] == "ledger_not_synced"] == [(cause, SYNC)]
    found = findings(postgres_url, monkeypatch)["ledger disk"]
    assert (found.finding, found.said, found.cure) == (Finding.PROBLEM, cause, SYNC)


async def test_a_server_that_waits_for_its_disk_is_told_nothing(monkeypatch):
    with running_postgres(find_postgres(), "fsync=on") as server, capture_logs() as said:
        async with opened(server.url()):
            pass
        assert {one.finding for one in findings(server.url(), monkeypatch).values()} == {Finding.OK}

    assert [one["event"] for one in said] == ["ledger_opened"]
