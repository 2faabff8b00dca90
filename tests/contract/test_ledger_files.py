"""Which files are used as a ledger, and which are refused, untouched."""

import asyncio
import contextlib
import shutil
import sqlite3
import threading

import pytest
from harness.ledger import (
    MANY,
    Ledger,
    new_request,
    opened,
)

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger.committer import Operation
from services.ledger.connection import open_ledger
from services.ledger.records import Accepted, Refused
from services.ledger.schema import VERSION
from services.ledger.states import Status

PATIENCE_S = 20


@pytest.fixture
def where(tmp_path):
    return tmp_path / "ledger.sqlite"


async def refusal(*args, **changes):
    with pytest.raises(Misconfigured) as caught:
        async with opened(*args, **changes):
            pass
    return str(caught.value)


async def test_a_ledger_is_kept_over_a_restart(path):
    async with opened(path) as connection:
        await Ledger(connection).accepted("r")

    async with opened(path) as connection:
        assert await Ledger(connection).status("r") == Status.ACCEPTED


async def test_a_ledger_whose_processes_were_killed_opens_with_everything_that_was_committed(ledger, path, tmp_path):
    await ledger.claimed(*MANY)
    left = tmp_path / "left" / "ledger.sqlite"
    left.parent.mkdir()
    for suffix in ("", "-wal"):  # what lies on the disk at this moment, nothing was closed
        shutil.copyfile(f"{path}{suffix}", f"{left}{suffix}")

    async with opened(left) as connection:
        answer = await Ledger(connection).beat()

    assert {one.request_id for one in answer.charging} == set(MANY)


async def test_every_commit_is_on_the_disk_before_it_is_told_and_who_reads_changes_nothing(ledger):
    def look(transaction, rows):
        return [{**row, **transaction.execute(f"PRAGMA {row['pragma']}")[0]} for row in rows]

    pragmas = [{"pragma": one} for one in ("synchronous", "journal_mode")]
    answers = await ledger.connection.write(Operation("look", "pragma", look), pragmas)
    assert answers == [
        {"pragma": "synchronous", "synchronous": 2},  # FULL
        {"pragma": "journal_mode", "journal_mode": "wal"},
    ]
    with pytest.raises(LedgerUnavailable, match="readonly"):
        await ledger.connection.read(lambda transaction: transaction.execute("DELETE FROM request"))


async def test_a_ledger_whose_making_was_cut_short_is_made_anew(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
    assert path.stat().st_size > 0

    async with opened(path) as connection:
        await Ledger(connection).accepted("r")


async def test_a_ledger_of_a_newer_schema_is_refused_and_left_as_it_is(tmp_path):
    where = tmp_path / "newer.sqlite"
    async with opened(where) as connection:
        await Ledger(connection).accepted("r")
    with contextlib.closing(sqlite3.connect(where)) as database, database:
        database.execute("UPDATE meta SET value = value + 1 WHERE name = 'schema_version'")
    before = where.read_bytes()

    said = await refusal(where)

    assert f"schema version {VERSION + 1}" in said
    assert str(where) in said
    assert where.read_bytes() == before


@pytest.mark.parametrize(
    "tables", ["CREATE TABLE accounts (id INTEGER)", "CREATE TABLE meta (a TEXT)", "CREATE TABLE meta (name, value)"]
)
async def test_somebody_elses_database_is_refused_and_left_as_it_is(tmp_path, tables):
    where = tmp_path / "foreign.sqlite"
    with contextlib.closing(sqlite3.connect(where)) as database, database:
        database.execute(tables)
    before = where.read_bytes()

    assert str(where) in await refusal(where)
    assert where.read_bytes() == before


@pytest.mark.parametrize("content", [b"Dear diary,\n", b"SQLite format 3\x00" + b"\xff" * 5_000, b"\x00" * 4_096])
async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path, content):
    where = tmp_path / "diary.txt"
    where.write_bytes(content)

    assert str(where) in await refusal(where)
    assert where.read_bytes() == content


async def test_a_folder_or_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")

    assert await refusal(tmp_path)
    assert await refusal(tmp_path / "file" / "ledger.sqlite")


async def test_a_process_of_another_speed_is_refused_and_told_the_right_one(path):
    async with opened(path, speed=60.0):
        said = await refusal(path, speed=1.5)
        assert "EVENLOAD_SPEED is 1.5" in said
        assert "set EVENLOAD_SPEED=60" in said
        async with opened(path, speed=60):
            pass


async def test_a_sqlite_file_for_several_hosts_is_refused_before_it_is_made(tmp_path):
    assert "EVENLOAD_LEDGER_SHARED" in await refusal(tmp_path / "ledger.sqlite", shared=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["oracle://host/x", "/tmp/ledger.sqlite", "sqlite://ledger.sqlite", ""])  # noqa: S108
async def test_an_address_that_names_no_ledger_is_refused(url):
    with pytest.raises(Misconfigured, match="EVENLOAD_LEDGER_URL"):
        async with open_ledger(
            url, shared=False, speed=60, lease_s=5, startup_timeout_s=5, observe_commit_s=lambda _seconds: None
        ):
            pass


async def test_a_closed_ledger_takes_nothing_more(tmp_path):
    async with opened(tmp_path / "ledger.sqlite") as connection:
        ledger = Ledger(connection)

    with pytest.raises(LedgerUnavailable):
        await ledger.accepted("r")


async def test_a_read_that_would_last_long_ends_with_its_ledger_which_is_closed_in_order(tmp_path):
    where = tmp_path / "ledger.sqlite"
    counts = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500000000) SELECT max(i) FROM n"
    has_begun = threading.Event()

    def read_slowly(transaction):
        has_begun.set()
        return transaction.execute(counts)

    async with asyncio.timeout(PATIENCE_S), opened(where) as connection:
        await Ledger(connection).accepted("r")
        reading = asyncio.create_task(connection.read(read_slowly))
        assert await asyncio.to_thread(has_begun.wait, PATIENCE_S)

    with pytest.raises(LedgerUnavailable, match="interrupted"):
        await reading
    assert [one.name for one in tmp_path.iterdir() if "-" in one.name] == []


async def test_a_reader_that_is_stuck_does_not_keep_the_writer_from_being_closed(path, monkeypatch):
    monkeypatch.setattr("services.ledger.connection.READER_DEADLINE_S", 0.1)
    has_begun, go_on = threading.Event(), threading.Event()

    def read_slowly(_transaction):
        has_begun.set()
        assert go_on.wait(PATIENCE_S)

    try:
        async with asyncio.timeout(PATIENCE_S / 2), opened(path) as connection:
            reading = asyncio.create_task(connection.read(read_slowly))
            assert await asyncio.to_thread(has_begun.wait, PATIENCE_S)
        with pytest.raises(LedgerUnavailable, match="the ledger is closed"):
            await Ledger(connection).accepted("r")
    finally:
        go_on.set()
        await asyncio.wait({reading})


async def test_a_faulty_request_is_refused_and_the_other_of_its_batch_is_written(ledger):
    answers = await ledger.intake.accept([new_request("good"), new_request("bad", vehicle_id=None)])

    assert [(type(one), one.asked) for one in answers] == [(Accepted, "good"), (Refused, "bad")]
    assert answers[1].code == "SQLITE_CONSTRAINT_NOTNULL"
    assert await ledger.status("good") == "accepted"
    assert await ledger.intake.request("bad") is None


async def test_a_ledger_that_was_moved_away_takes_nothing_until_it_is_back(ledger, path):
    away = path.with_name("away")
    away.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        file.rename(away / file.name)

    with pytest.raises(LedgerUnavailable, match=f"{path} is gone: put the right one back"):
        await ledger.accepted("lost")
    assert not path.exists()

    for file in away.iterdir():
        file.rename(path.with_name(file.name))
    await ledger.accepted("kept")
    assert await ledger.intake.request("lost") is None


async def test_another_file_in_the_place_of_the_ledger_is_not_written(tmp_path):
    path = tmp_path / "ledger.sqlite"
    async with opened(path) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("first")
        path.rename(tmp_path / "old")
        path.write_bytes(b"")

        with pytest.raises(LedgerUnavailable, match="another file"):
            await ledger.accepted("lost")

    assert path.read_bytes() == b""


async def test_why_writing_fails_is_told_until_it_goes_well_again(ledger, path):
    assert ledger.connection.fault is None
    gone = path.rename(path.with_name("gone"))
    with pytest.raises(LedgerUnavailable):
        await ledger.connection.probe()
    assert "is gone" in ledger.connection.fault

    gone.rename(path)
    await ledger.connection.probe()
    assert ledger.connection.fault is None
