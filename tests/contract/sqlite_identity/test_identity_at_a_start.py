"""A start takes no other, older or damaged SQLite ledger for the right one."""

import asyncio
import contextlib
import os
import shutil
import sqlite3

import pytest
from harness.ledger import MANY, Ledger, asked, opened
from harness.sqlite_files import (
    beside,
    copy_over,
    crashed,
    left,
    refusal,
)

from services.errors import LedgerUnavailable


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
