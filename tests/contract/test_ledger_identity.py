"""A SQLite ledger that is lost, replaced or set back, while it is in use and before a start: nothing is lost unseen."""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from harness.ledger import MANY, Ledger, asked, opened

from services.cli.checks import Finding
from services.cli.checks_ledger import check_ledger
from services.errors import LedgerUnavailable, Misconfigured
from services.ledger import connection as ledger_connection
from services.ledger import sqlite, sqlite_setup
from services.ledger.sqlite_files import lock_path, look_at_main_file

LOG_PAGES = 1_000
"""With so many pages in the log, SQLite copies it into the main file."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "ledger.sqlite"


@pytest.fixture
async def ledger(path):
    async with opened(path) as connection:
        one = Ledger(connection)
        await one.accepted("first")
        yield one


@pytest.fixture
async def other(tmp_path):
    """Another ledger, whose history got further."""
    async with opened(tmp_path / "other.sqlite") as connection:
        await Ledger(connection).accepted(*MANY)
    return tmp_path / "other.sqlite"


def copy_over(source, target):
    """As `cp` does: into the file that is there. This process would lose SQLite's locks by it, so another one does."""
    subprocess.run(["cp", source, target], check=True)


def backup(source, target):
    """As SQLite's `.backup` and `.restore` do."""
    with contextlib.closing(sqlite3.connect(source)) as one, contextlib.closing(sqlite3.connect(target)) as two:
        one.backup(two)


def write_the_log_into_the_file(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0] == 0


def beside(path, suffix):
    return path.with_name(path.name + suffix)


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


# --- starts ------------------------------------------------------------------------------------------------------


async def refusal(path):
    """What a start says; the doctor must say the same, and neither may change anything."""
    before = {one: one.stat().st_mtime_ns for one in path.parent.iterdir() if not one.name.endswith((".lock", "-shm"))}
    with pytest.raises(Misconfigured) as caught:
        async with opened(path):
            pass
    assert {one: one.stat().st_mtime_ns for one in before} == before
    [check] = [one for one in check_ledger(f"sqlite:///{path}") if one.check == "ledger"]
    assert check.finding is Finding.MISCONFIGURED
    assert str(caught.value) == f"{check.said}: {check.cure}"
    return str(caught.value).removeprefix(f"EVENLOAD_LEDGER_URL: {path} ")


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_ledger_that_is_gone_while_it_is_used_is_not_made_anew(ledger, path, is_empty):
    gone = path.rename(path.with_name("gone"))
    if is_empty:
        path.touch()

    said = await refusal(path)

    assert said == (
        "is gone or empty, but ledger.sqlite-wal beside it tells that a ledger was in use there: "
        "put it back, or, to begin a new one, stop all services and delete every ledger.sqlite* file"
    )
    gone.rename(path)
    await ledger.accepted("second")
    assert await ledger.status("first")


async def left(path, *request_ids):
    """A ledger that was used and closed."""
    async with opened(path) as connection:
        await Ledger(connection).accepted(*request_ids)


async def test_a_ledger_that_was_deleted_alone_is_not_made_anew_and_one_deleted_with_all_its_files_is(path):
    await left(path, "first")
    path.unlink()
    assert "ledger.sqlite.identity beside it tells that a ledger was in use" in await refusal(path)

    for file in path.parent.glob("ledger.sqlite*"):
        file.unlink()
    async with opened(path) as connection:
        assert await Ledger(connection).intake.request("first") is None


async def test_another_ledger_in_its_place_is_refused_until_the_record_is_deleted(path, other):
    await left(path, "first")
    shutil.copy(other, path)

    said = await refusal(path)

    assert said.startswith("is another ledger than the one that services used here: put the right one back")
    beside(path, ".identity").unlink()
    async with opened(path) as connection:
        assert await Ledger(connection).status(MANY[0])


async def test_an_older_backup_in_its_place_is_refused_until_the_record_is_deleted(path):
    await left(path, "first")
    shutil.copy(path, path.with_name("backup"))
    await left(path, "later")
    shutil.copy(path.with_name("backup"), path)

    said = await refusal(path)

    assert "(its history ends at 1, and ended at 2)" in said
    assert said.endswith("stop all services and delete only ledger.sqlite.identity")
    beside(path, ".identity").unlink()
    async with opened(path) as connection:
        assert await Ledger(connection).intake.request("later") is None


def crashed(path, to, *suffixes):
    """What lies on the disk after all services were killed."""
    to.mkdir()
    for suffix in ("", ".identity", *suffixes):
        copy_over(beside(path, suffix), to)
    return to / path.name


async def test_a_log_that_was_deleted_after_a_crash_is_missed(ledger, path, tmp_path):
    without = crashed(path, tmp_path / "without")
    whole = crashed(path, tmp_path / "whole", "-wal")

    assert "has lost its -wal file, and lacks what services saw in it" in await refusal(without)
    async with opened(whole) as connection:
        assert await Ledger(connection).status("first")


async def test_an_index_without_its_log_is_told(ledger, path, tmp_path):
    left_over = crashed(path, tmp_path / "left", "-shm")

    assert "has lost ledger.sqlite-wal, which services use or used: put it back" in await refusal(left_over)


async def test_a_backup_that_was_copied_over_a_ledger_in_use_is_refused_by_the_next_start(path, other):
    async with opened(path) as connection:
        await Ledger(connection).accepted("first")
        copy_over(other, path)
        with pytest.raises(LedgerUnavailable):
            await Ledger(connection).accepted("lost")

    assert (await refusal(path)).startswith("was overwritten while services used it")


async def test_a_ledger_with_a_second_name_is_refused(path):
    await left(path, "first")
    os.link(path, path.with_name("second-name"))

    assert "has a second name (a hard link)" in await refusal(path)


async def test_a_copy_of_the_whole_folder_is_a_ledger(ledger, path, tmp_path):
    shutil.copytree(
        path.parent, tmp_path / "copy", ignore=lambda _folder, names: [one for one in names if "-shm" in one]
    )

    async with opened(tmp_path / "copy" / path.name) as connection:
        assert await Ledger(connection).status("first")


async def test_a_ledger_from_before_there_were_ids_gets_one_and_keeps_it(path):
    await left(path, "first")
    beside(path, ".identity").unlink()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM meta WHERE name = 'ledger_id'")
    ids = []
    for _ in range(2):
        await left(path)
        ids.append(asked(path, "SELECT value FROM meta WHERE name = 'ledger_id'"))

    assert ids[0] == ids[1] != []


async def test_processes_that_start_at_once_make_one_ledger(path):
    async with contextlib.AsyncExitStack() as stack:
        connections = await asyncio.gather(*(stack.enter_async_context(opened(path)) for _ in range(4)))
        for number, connection in enumerate(connections):
            await Ledger(connection).accepted(f"r{number}")

        assert len(asked(path, "SELECT id FROM request")) == 4


async def test_a_busy_ledger_that_is_copied_into_its_file_again_and_again_is_never_taken_for_another(path):
    async with opened(path) as writing, opened(path) as reading:
        writer, reader = Ledger(writing), Ledger(reading)
        for round_number in range(3):
            await writer.accepted(*(f"{round_number}-{number}-{'x' * 3_000}" for number in range(LOG_PAGES)))
            await reader.intake.counts()
            await reader.connection.probe()
    assert path.stat().st_size > LOG_PAGES * 3_000


# --- checkpoints that did not get to their end ---------------------------------------------------------------------


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


WRITER = """
import sys
from pathlib import Path
from services.ledger import sqlite, sqlite_setup, statements

sqlite.WRITER_PRAGMAS = (*sqlite.WRITER_PRAGMAS, "PRAGMA wal_autocheckpoint = 5")
path = Path(sys.argv[1])
seen = sqlite_setup.seen_at(path)
seen.note(sqlite_setup.prepare(path, 5))
driver = sqlite.SqliteDriver(path, seen)
print("writes", flush=True)
while True:
    driver.run(lambda one: one.execute("INSERT INTO meta VALUES (hex(randomblob(8)), hex(randomblob(1500)))"))
"""


def write_until_killed(path, grown_bytes):
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout.readline() == b"writes\n"
            end_at = time.monotonic() + 30
            size = path.stat().st_size + grown_bytes
            while path.stat().st_size <= size:
                assert time.monotonic() < end_at
        finally:
            writer.kill()


async def test_a_writer_that_is_killed_in_the_midst_of_its_commits_leaves_a_ledger_that_starts(path):
    await left(path, "first")
    for number in range(4):
        await asyncio.to_thread(write_until_killed, path, number * 8_192)
        async with opened(path) as connection:
            assert await Ledger(connection).status("first")
            await Ledger(connection).accepted(f"r{number}")


async def test_a_checkpoint_that_was_cut_short_leaves_a_ledger_that_starts(path, tmp_path):
    async with opened(path) as connection:
        size = path.stat().st_size
        await Ledger(connection).accepted(*(f"{number}-{'x' * 3_000}" for number in range(100)))
        write_the_log_into_the_file(path)
        killed = crashed(path, tmp_path / "killed", "-wal")
    os.truncate(killed, size)  # the first pages were copied already, and tell of more than there is

    main = look_at_main_file(killed)
    assert main is not None  # so it can still be told from another one
    assert main.ledger_id == asked(path, "SELECT value FROM meta WHERE name = 'ledger_id'")[0][0]
    async with opened(killed) as connection:
        assert await Ledger(connection).status(f"99-{'x' * 3_000}")
        await Ledger(connection).accepted("last")


def tear(path, page):
    """Another process writes, as in `copy_over`."""
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=4096", f"seek={page - 1}", "count=1", "conv=notrunc", "status=none"],
        check=True,
    )


async def test_a_page_that_was_torn_and_stands_whole_in_the_log_leaves_a_ledger_that_starts(path, tmp_path):
    async with opened(path) as connection:
        await Ledger(connection).accepted("first")
        killed = crashed(path, tmp_path / "killed", "-wal")
    [(page,)] = asked(path, "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_sequence'")
    tear(killed, page)

    async with opened(killed) as connection:
        assert await Ledger(connection).status("first")
        await Ledger(connection).accepted("last")


# --- a backup that is put in place under running services ----------------------------------------------------------


@pytest.mark.parametrize("is_noticed_before_the_end", [True, False])
async def test_a_deleted_log_is_never_copied_into_a_backup_that_a_start_accepts(path, is_noticed_before_the_end):
    await left(path, "first")
    backup(path, path.with_name("backup"))
    await left(path, "second")
    async with opened(path) as connection:
        await Ledger(connection).accepted(*MANY)
        for suffix in ("-wal", "-shm", ".identity"):
            beside(path, suffix).unlink()
        copy_over(path.with_name("backup"), path)
        if is_noticed_before_the_end:
            with pytest.raises(LedgerUnavailable, match="was overwritten by another or an older file"):
                await Ledger(connection).accepted("lost")
            assert path.read_bytes() == path.with_name("backup").read_bytes()

    assert "was overwritten while services used it" in await refusal(path)
    copy_over(path.with_name("backup"), path)
    beside(path, ".identity").unlink()
    async with opened(path) as connection:
        assert await Ledger(connection).status("first")
    assert asked(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_deleted_log_is_not_copied_into_a_file_that_cannot_be_judged(path):
    async with opened(path) as connection:
        await Ledger(connection).accepted("first")
        [(page,)] = asked(path, "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_sequence'")
        beside(path, "-wal").unlink()
        tear(path, page)
        torn = path.read_bytes()
        with pytest.raises(LedgerUnavailable, match="has lost ledger"):
            await Ledger(connection).accepted("lost")
        assert path.read_bytes() == torn


async def test_a_backup_that_was_put_before_the_log_of_a_crash_is_refused(path, tmp_path):
    await left(path, "first")
    backup(path, tmp_path / "backup")
    await left(path, *MANY)
    async with opened(path) as connection:
        await Ledger(connection).accepted("last")
        killed = crashed(path, tmp_path / "killed", "-wal")
    copy_over(tmp_path / "backup", killed)

    said = await refusal(killed)

    assert said.startswith("was overwritten by an older one: put the right one back with its -wal file")
    assert "keep a copy of ledger.sqlite-wal first" in said


async def test_a_folder_copied_while_services_write_is_told_to_keep_its_log(ledger, path, tmp_path):
    copied = crashed(path, tmp_path / "copied", "-wal")
    await ledger.accepted("later")
    copy_over(beside(path, ".identity"), beside(copied, ".identity"))  # last, as `cp -r` does

    said = await refusal(copied)

    assert said.endswith(
        "put the newer one back, or, to go on with this one, stop all services and delete only ledger.sqlite.identity"
    )
    beside(copied, ".identity").unlink()
    async with opened(copied) as connection:
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
