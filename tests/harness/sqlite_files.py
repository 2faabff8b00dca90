"""What happens to the files of a SQLite ledger outside of its services: copies, backups, crashes, torn pages."""

import contextlib
import sqlite3
import subprocess

import pytest
from harness.ledger import Ledger, opened

from services.cli.checks import Finding
from services.cli.checks_ledger import check_ledger
from services.errors import Misconfigured


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


async def left(path, *request_ids):
    """A ledger that was used and closed."""
    async with opened(path) as connection:
        await Ledger(connection).accepted(*request_ids)


def crashed(path, to, *suffixes):
    """What lies on the disk after all services were killed."""
    to.mkdir()
    for suffix in ("", ".identity", *suffixes):
        copy_over(beside(path, suffix), to)
    return to / path.name


def tear(path, page):
    """Another process writes, as in `copy_over`."""
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={path}", "bs=4096", f"seek={page - 1}", "count=1", "conv=notrunc", "status=none"],
        check=True,
    )


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
