"""A SQLite ledger that is lost, replaced or set back while it is in use: nothing is lost unseen."""

import asyncio
import contextlib
import shutil
import sqlite3
import threading

import pytest
from harness.ledger import Ledger, asked, opened
from harness.sqlite_files import (
    backup,
    beside,
    copy_over,
    crashed,
    write_the_log_into_the_file,
)

from services.cli.checks import Finding
from services.cli.checks_ledger import check_ledger
from services.errors import LedgerUnavailable
from services.ledger import connection as ledger_connection
from services.ledger import sqlite, sqlite_setup
from services.ledger.sqlite_files import lock_path

LOG_PAGES = 1_000
"""With so many pages in the log, SQLite copies it into the main file."""


@contextlib.asynccontextmanager
async def moved(path, _ledger, _other):
    gone = path.rename(path.with_name("gone"))
    yield "is gone"
    gone.rename(path)


@contextlib.asynccontextmanager
async def folder_moved(path, _ledger, _other):
    gone = path.parent.rename(path.parent.with_name("gone"))
    yield "is gone"
    gone.rename(path.parent)


@contextlib.asynccontextmanager
async def replaced(path, _ledger, other):
    gone = path.rename(path.with_name("gone"))
    shutil.copy(other, path)
    yield "is another file than the one that was opened"
    gone.rename(path)


@contextlib.asynccontextmanager
async def overwritten(path, _ledger, other):
    copy_over(path, path.with_name("kept"))
    copy_over(other, path)
    yield "was overwritten by another or an older file while it was open"
    copy_over(path.with_name("kept"), path)


@contextlib.asynccontextmanager
async def overwritten_by_a_backup(path, ledger, _other):
    write_the_log_into_the_file(path)
    copy_over(path, path.with_name("backup"))
    await ledger.accepted("later")
    write_the_log_into_the_file(path)
    await ledger.accepted("latest")
    copy_over(path, path.with_name("kept"))
    copy_over(path.with_name("backup"), path)
    yield "was overwritten by another or an older file while it was open"
    copy_over(path.with_name("kept"), path)


@contextlib.asynccontextmanager
async def overwritten_by_rubbish(path, _ledger, _other):
    copy_over(path, path.with_name("kept"))
    path.with_name("rubbish").write_bytes(b"\xff" * 9_000)
    copy_over(path.with_name("rubbish"), path)
    yield "was overwritten by another or an older file while it was open"
    copy_over(path.with_name("kept"), path)


@contextlib.asynccontextmanager
async def restored(path, ledger, _other):
    backup(path, path.with_name("backup"))
    await ledger.accepted("later")
    backup(path, path.with_name("newest"))
    backup(path.with_name("backup"), path)
    yield "was restored from a backup, and lacks what this process saw in it (its history ends at 1, and ended at 2)"
    backup(path.with_name("newest"), path)


@contextlib.asynccontextmanager
async def restored_from_another(path, _ledger, other):
    backup(path, path.with_name("newest"))
    backup(other, path)
    yield "is another ledger than the one that this process uses"
    backup(path.with_name("newest"), path)


@contextlib.asynccontextmanager
async def log_moved(path, _ledger, _other):
    gone = beside(path, "-wal").rename(path.with_name("gone"))
    yield "has lost ledger.sqlite-wal, which services use"
    gone.rename(beside(path, "-wal"))


@contextlib.asynccontextmanager
async def index_moved(path, _ledger, _other):
    gone = beside(path, "-shm").rename(path.with_name("gone"))
    yield "has lost ledger.sqlite-shm, which services use"
    gone.rename(beside(path, "-shm"))


TROUBLES = [
    moved,
    folder_moved,
    replaced,
    overwritten,
    overwritten_by_a_backup,
    overwritten_by_rubbish,
    restored,
    restored_from_another,
    log_moved,
    index_moved,
]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_while_the_right_ledger_is_away_nothing_is_written_or_read_and_all_goes_on_when_it_is_back(
    ledger, path, other, trouble
):
    assert await ledger.status("first")  # who reads has files of its own
    async with trouble(path, ledger, other) as cause:
        for call in (lambda: ledger.accepted("lost"), lambda: ledger.status("first"), ledger.connection.probe):
            with pytest.raises(LedgerUnavailable) as caught:
                await call()
            assert f"{path} {cause}: put " in str(caught.value)
        await ledger.connection.look()
        assert cause in ledger.connection.fault
        doctors = [one for one in check_ledger(f"sqlite:///{path}") if one.check == "ledger"]
        if trouble is folder_moved:  # nothing is left that could tell
            assert doctors[0].said == f"{path} is made at the first start"
        else:
            assert doctors[0].finding in (Finding.PROBLEM, Finding.MISCONFIGURED)
            assert doctors[0].cure.startswith("put ")

    await ledger.connection.look()
    await ledger.connection.probe()
    assert ledger.connection.fault is None
    await ledger.accepted("last")
    assert await ledger.intake.request("lost") is None
    found = {row[0] for row in asked(path, "SELECT id FROM request")}
    assert found >= {"first", "last"}
    assert asked(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_name_that_leads_to_another_ledger_later_is_not_followed(tmp_path, other):
    first, name = tmp_path / "first" / "ledger.sqlite", tmp_path / "ledger.sqlite"
    name.symlink_to(first)
    first.parent.mkdir()
    async with opened(name) as connection, opened(first) as by_its_own_name:
        await Ledger(connection).accepted("by a link")
        assert await Ledger(by_its_own_name).status("by a link")
        assert not list(tmp_path.glob("ledger.sqlite-*"))  # all side files lie beside the file itself
        name.unlink()
        name.symlink_to(other)

        with pytest.raises(LedgerUnavailable, match="is another file than the one that was opened"):
            await Ledger(connection).accepted("lost")
        await Ledger(by_its_own_name).accepted("kept")


async def test_what_only_the_log_held_is_kept_though_the_log_is_deleted(path):
    async with opened(path) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("first")
        beside(path, "-wal").unlink()
        with pytest.raises(LedgerUnavailable, match="stop all services and start them again"):
            await ledger.accepted("lost")
        copied = path.with_name("what-a-kill-would-leave")
        copy_over(path, copied)

    assert asked(copied, "SELECT id FROM request") == [("first",)]
    async with opened(path) as connection:
        assert await Ledger(connection).status("first")


async def test_a_look_that_waits_for_slow_reads_tells_of_no_fault(ledger, monkeypatch):
    monkeypatch.setattr(ledger_connection, "READ_DEADLINE_S", 0.05)
    ended = threading.Event()
    slow = asyncio.create_task(ledger.connection.read(lambda _transaction: ended.wait(30)))
    looking = asyncio.create_task(ledger.connection.look())

    with pytest.raises(LedgerUnavailable, match="no answer within"):
        await slow
    assert ledger.connection.fault is None
    ended.set()
    await looking
    assert ledger.connection.fault is None


async def test_the_first_read_does_not_wait_for_a_writer(ledger, path):
    seen = sqlite_setup.seen_at(path)
    reader = sqlite.SqliteReader(path, seen)
    with lock_path(path).open() as lock, sqlite.lock_held(lock.fileno()):
        assert await asyncio.to_thread(reader.read, lambda one: one.execute("SELECT id FROM request"))
    reader.close()


async def test_a_busy_ledger_that_is_copied_into_its_file_again_and_again_is_never_taken_for_another(path):
    async with opened(path) as writing, opened(path) as reading:
        writer, reader = Ledger(writing), Ledger(reading)
        for round_number in range(3):
            await writer.accepted(*(f"{round_number}-{number}-{'x' * 3_000}" for number in range(LOG_PAGES)))
            await reader.intake.counts()
            await reader.connection.probe()
    assert path.stat().st_size > LOG_PAGES * 3_000


async def test_a_reader_that_overlaps_every_commit_does_not_make_the_ledger_look_overwritten(path, tmp_path):
    async with opened(path) as connection:
        ledger = Ledger(connection)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reading:
            for number in range(120):  # the log is copied for the first time at about the 55th
                reading.execute("BEGIN")
                reading.execute("SELECT count(*) FROM request").fetchone()
                await ledger.accepted(*(f"{number}-{one}" for one in range(20)))
                reading.execute("COMMIT")
        await connection.look()
        assert connection.fault is None
        killed = crashed(path, tmp_path / "killed", "-wal")

    for one in (path, killed):
        async with opened(one) as connection:
            assert await Ledger(connection).status("119-19")
            await Ledger(connection).accepted("last")
