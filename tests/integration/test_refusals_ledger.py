"""A ledger that cannot be used ends a service with exit code 2 and one line that names the fault and the cure."""

import asyncio
import contextlib
import sqlite3

import pytest
from harness.ledger import changed, opened
from harness.refusal import ENDS_WITHIN_S, PASSWORD, SERVICES

pytestmark = pytest.mark.timeout(ENDS_WITHIN_S, func_only=True)


@pytest.mark.parametrize("who", SERVICES)
def test_a_ledgers_file_that_holds_something_else(refusal, tmp_path, who):
    (tmp_path / "ledger_url").write_text(PASSWORD)

    said = refusal(who, EVENLOAD_LEDGER_URL_FILE=str(tmp_path / "ledger_url"))

    assert "EVENLOAD_LEDGER_URL: its value is no ledger this version knows" in said


@pytest.fixture
def ledger_at(tmp_path):
    """Addresses of ledgers that cannot be used."""

    def address(fault: str) -> str:
        where = tmp_path / f"{fault}.sqlite"
        match fault:
            case "unwritable":
                (tmp_path / "file").write_text("")
                where = tmp_path / "file" / "ledger.sqlite"
            case "folder":
                where.mkdir()
            case "diary":
                where.write_text("Dear diary, this is no database, but as long as the header of one. " * 9)
            case "foreign":
                with contextlib.closing(sqlite3.connect(where)) as database, database:
                    database.execute("CREATE TABLE accounts (id INTEGER)")
        return f"sqlite:///{where}"

    return address


@pytest.mark.parametrize("who", SERVICES)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("unwritable", "cannot be used (File exists): name a file where this user may write"),
        ("folder", "is no usable ledger"),
        ("diary", "is no usable ledger (file is not a database): name another file, or a new one"),
        ("foreign", "is a database, but not Evenload's ledger: name another file"),
    ],
)
def test_a_ledger_that_cannot_be_used_and_no_broker_either(refusal, ledger_at, who, fault, told):
    address = ledger_at(fault)

    said = refusal(who, EVENLOAD_LEDGER_URL=address)

    assert f"EVENLOAD_LEDGER_URL: {address.removeprefix('sqlite:///')} " in said
    assert told in said
    assert "; and EVENLOAD_AMQP_URL: no broker answers at amqp://someone:***@127.0.0.1:1/evenload" in said


@pytest.mark.parametrize("address", ["sqlite:///", "sqlite:////", "sqlite://ledger", "oracle://host/x"])
def test_what_is_no_address_of_a_ledger(refusal, address):
    said = refusal("gateway", EVENLOAD_LEDGER_URL=address)

    assert "EVENLOAD_LEDGER_URL: " in said
    assert "give sqlite:///path/to/ledger.sqlite" in said


@pytest.mark.parametrize("who", SERVICES)
def test_a_postgresql_that_refuses(refusal, postgres, who):
    said = refusal(who, EVENLOAD_LEDGER_URL=postgres.url(password=PASSWORD), EVENLOAD_LEDGER_SHARED="1")

    assert f"EVENLOAD_LEDGER_URL: 127.0.0.1:{postgres.port}/postgres refuses (password" in said
    assert "correct user and password, or let pg_hba.conf admit this user from this host" in said


def test_a_postgresql_that_is_not_there(refusal, port):
    said = refusal("gateway", EVENLOAD_LEDGER_URL=f"postgresql://someone:{PASSWORD}@127.0.0.1:{port}/evenload")

    assert f"EVENLOAD_LEDGER_URL: 127.0.0.1:{port}/evenload does not answer" in said
    assert "start PostgreSQL there, or correct host and port" in said


def make_ledger(where, **agreed):
    """A ledger that somebody has used."""

    async def use():
        async with opened(where, **agreed):
            pass

    asyncio.run(use())


@pytest.mark.parametrize("who", SERVICES)
def test_a_ledger_of_a_newer_version(refusal, tmp_path, who):
    where = tmp_path / "newer.sqlite"
    make_ledger(where)
    changed(where, "UPDATE meta SET value = '999' WHERE name = 'schema_version'")

    said = refusal(who, EVENLOAD_LEDGER_URL=f"sqlite:///{where}")

    assert f"EVENLOAD_LEDGER_URL: {where} has schema version 999" in said
    assert "use the Evenload that wrote it, or name another file" in said


@pytest.mark.parametrize("who", SERVICES)
def test_a_ledger_whose_sessions_run_at_another_speed(refusal, tmp_path, who):
    make_ledger(tmp_path / "ledger.sqlite", speed=60)

    said = refusal(who, EVENLOAD_SPEED="61")

    assert "EVENLOAD_SPEED is 61, but this ledger is used with 60: set EVENLOAD_SPEED=60" in said


def test_a_sqlite_file_for_several_hosts(refusal):
    assert "and unset EVENLOAD_LEDGER_SHARED" in refusal("balancer", EVENLOAD_LEDGER_SHARED="1")
