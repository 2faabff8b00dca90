"""The doctor's look at the ledger: opened for reading only, never made, never waited for."""

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from services.cli import checks_postgres
from services.cli.checks import Check, misconfigured, note, ok, problem, with_cure
from services.errors import EvenloadError, LedgerUnavailable, Misconfigured
from services.files import is_there
from services.ledger import schema
from services.ledger.address import SETTING, sqlite_path
from services.ledger.sqlite_files import beside, lock_path
from services.ledger.sqlite_setup import Inside, inspect
from services.local import locks
from services.local.folders import data_folder
from services.local.plan import default_ledger
from services.settings import LocalSettings, given

HELD_LONG_S = 1.5
"""A writer holds the lock for a commit: milliseconds."""
POLL_S = 0.01
"""Often enough that a busy writer, who takes the lock again and again, is seen without it."""
INSPECT_AGAIN_S = 0.1
DEFAULT_SPEED = "60"


def ledger_url(settings: LocalSettings) -> str:
    """The address of the ledger that the local stack would use; raises `Misconfigured`."""
    return given(SETTING) or default_ledger(data_folder(settings))


def check_ledger(url: str) -> Iterator[Check]:
    """Check the ledger, its version and its speed; of a file also its lock, and whether it is the right one."""
    try:
        path = sqlite_path(url, is_default=given(SETTING) is None)
    except Misconfigured as error:
        yield with_cure("ledger", error)
        return
    yield from _check_database(url) if path is None else _check_file(path)


def _check_database(url: str) -> Iterator[Check]:
    try:
        where = checks_postgres.place(url)
        meta = checks_postgres.read_meta(url)
    except Misconfigured as error:
        yield with_cure("ledger", error)
    except LedgerUnavailable as error:
        said, _, cure = str(error).rpartition(": ")
        yield problem("ledger", said, cure)
    else:
        if meta is None:
            yield note("ledger", f"{where} is empty: the database's owner makes the ledger at the first start")
        else:
            yield from _check_meta(where, meta, "another database")
            if fault := checks_postgres.disk_fault(url):
                cause, cure = fault
                yield problem("ledger disk", f"{where} {cause}", cure)


def _check_file(path: Path) -> Iterator[Check]:
    if is_there(lock_path(path)):
        yield _lock(path)
    try:
        if _inspected(path) is None:
            yield note("ledger", f"{path} is made at the first start")
            return
        meta = read_meta(path)
    except Misconfigured as error:
        yield with_cure("ledger", error)
    except (sqlite3.Error, OSError) as error:
        yield misconfigured("ledger", f"{path} is no usable ledger: {error}", "name another EVENLOAD_DATA_DIR")
    else:
        if locks.holders(path) and not beside(path, "-shm").exists():
            cure = "put it back, or stop all services and start them again"
            yield problem("ledger", f"{path} has lost {path.name}-shm, which services use", cure)
        yield from _check_meta(str(path), meta, "another EVENLOAD_DATA_DIR")


def _inspected(path: Path) -> Inside | None:
    """As `inspect`, which a service that writes the file just now may mislead once."""
    try:
        return inspect(path)
    except (Misconfigured, sqlite3.Error):
        time.sleep(INSPECT_AGAIN_S)
        return inspect(path)


def _check_meta(where: str, meta: Mapping[str, str], other: str) -> Iterator[Check]:
    yield _version(where, meta.get("schema_version"), other)
    if "speed" in meta:
        yield _speed(meta["speed"], other)


def registered_substations(url: str) -> list[str]:
    """Ids that some process holds, by the ledger; empty where it cannot be read."""
    with contextlib.suppress(sqlite3.Error, EvenloadError, OSError):
        path = sqlite_path(url)
        if path is None:
            return checks_postgres.held_substations(url)
        if path.exists():
            return [row[0] for row in _read(path, "SELECT id FROM substation WHERE left_at_ms IS NULL ORDER BY id")]
    return []


def read_meta(path: Path) -> dict[str, str]:
    """What the ledger says of itself; raises `sqlite3.Error` for a file that is none."""
    return {str(name): str(value) for name, value in _read(path, "SELECT name, value FROM meta")}


def _read(path: Path, query: str) -> list[tuple[str, ...]]:
    wal = beside(path, "-wal")
    # Without a write-ahead log nothing is newer than the file; opening it as immutable leaves no side files.
    mode = "mode=ro" if wal.exists() and wal.stat().st_size > 0 else "immutable=1"
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=1)) as connection:
        return connection.execute(query).fetchall()


def _lock(path: Path) -> Check:
    """Watch the lock for a while: a commit releases it, a process that stands still does not."""
    gate = lock_path(path)
    give_up_at = time.monotonic() + HELD_LONG_S
    holders = locks.holders(gate)
    while holders and time.monotonic() < give_up_at:
        time.sleep(POLL_S)
        holders &= locks.holders(gate)
    if not holders:
        return ok("ledger lock", "nobody holds it for long")
    who = ", ".join(_who(pid) for pid in sorted(holders))
    cure = f"end or continue the one that stands still: `kill {min(holders)}`, `kill -CONT {min(holders)}`"
    return problem("ledger lock", f"{who} has held {gate.name} for more than {HELD_LONG_S:g} s", cure)


def _version(where: str, found: str | None, other: str) -> Check:
    if found is None:
        return misconfigured("ledger", f"{where} is a database, but not Evenload's", f"name {other}")
    if found == str(schema.VERSION):
        return ok("ledger", f"{where}, schema version {found}")
    age = "newer" if found.isdecimal() and int(found) > schema.VERSION else "older"
    return misconfigured(
        "ledger",
        f"{where} has schema version {found}, {age} than this Evenload's {schema.VERSION}",
        f"use the Evenload that wrote it, or {other}",
    )


def _speed(kept: str, other: str) -> Check:
    try:
        wanted = f"{float(given('EVENLOAD_SPEED') or DEFAULT_SPEED):g}"
    except (ValueError, Misconfigured):
        return note("speed", f"the ledger's sessions run at {kept}")  # the settings' line tells what is wrong
    if wanted == kept:
        return ok("speed", f"{kept}, as the ledger's sessions run")
    return misconfigured(
        "speed",
        f"EVENLOAD_SPEED is {wanted}, but the sessions of this ledger run at {kept}",
        f"set EVENLOAD_SPEED={kept}, or name {other}",
    )


def _who(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return f"pid {pid} ({' '.join(process.cmdline())[:60] or process.name()})"
    return f"pid {pid}" if pid else "a process of another container"
