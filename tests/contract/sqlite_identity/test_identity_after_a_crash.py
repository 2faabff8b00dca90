"""What a crash or a deleted log leaves of a SQLite ledger starts again or is refused; it is never mixed up."""

import asyncio
import os
import subprocess
import sys
import time

import pytest
from harness.ledger import MANY, Ledger, asked, opened
from harness.sqlite_files import (
    backup,
    beside,
    copy_over,
    crashed,
    left,
    refusal,
    tear,
    write_the_log_into_the_file,
)

from services.errors import LedgerUnavailable
from services.ledger.sqlite_files import look_at_main_file

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


async def test_a_page_that_was_torn_and_stands_whole_in_the_log_leaves_a_ledger_that_starts(path, tmp_path):
    async with opened(path) as connection:
        await Ledger(connection).accepted("first")
        killed = crashed(path, tmp_path / "killed", "-wal")
    [(page,)] = asked(path, "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_sequence'")
    tear(killed, page)

    async with opened(killed) as connection:
        assert await Ledger(connection).status("first")
        await Ledger(connection).accepted("last")


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


async def test_a_log_that_was_deleted_after_a_crash_is_missed(ledger, path, tmp_path):
    without = crashed(path, tmp_path / "without")
    whole = crashed(path, tmp_path / "whole", "-wal")

    assert "has lost its -wal file, and lacks what services saw in it" in await refusal(without)
    async with opened(whole) as connection:
        assert await Ledger(connection).status("first")


async def test_an_index_without_its_log_is_told(ledger, path, tmp_path):
    left_over = crashed(path, tmp_path / "left", "-shm")

    assert "has lost ledger.sqlite-wal, which services use or used: put it back" in await refusal(left_over)
