"""Makes a SQLite ledger where there is none; refuses, untouched, what is not ours, and another than lived there."""

import contextlib
import fcntl
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from services.errors import Misconfigured
from services.ledger import schema, sqlite_soundness
from services.ledger.address import SETTING
from services.ledger.identity import NAME, Seen, Sight, new_id
from services.ledger.sqlite import WRITER_PRAGMAS, connect, lock_held
from services.ledger.sqlite_files import (
    Record,
    RecordFile,
    beside,
    copy_log,
    lock_path,
    look,
    look_at_main_file,
    read_record,
    record_path,
)

LOCK_POLL_S = 0.05
_IS_ANOTHER = "is another ledger than the one that services used here"
_PRAGMAS = ("PRAGMA journal_mode = WAL", *WRITER_PRAGMAS)


def seen_at(path: Path) -> Seen:
    """What a process has seen of the ledger at `path`: nothing yet."""
    return Seen(str(path), _cure_of_other(path), _cure_of_older(path))


def _cure_of_other(path: Path) -> str:
    name = path.name
    return (
        f"put the right one back with its -wal file, or, to go on with this one, stop all services, keep a copy of "
        f"{name}-wal first, delete {name}.identity, {name}-wal and {name}-shm, and put it there again"
    )


def _cure_of_older(path: Path) -> str:
    """The log stays: in a copy that was made while services wrote, it holds what was accepted."""
    return f"put the newer one back, or, to go on with this one, stop all services and delete only {path.name}.identity"


def prepare(path: Path, give_up_after_s: float) -> Sight:
    """Make the ledger file where there is none, and refuse one that is not ours to write, untouched.

    Returns what the ledger says of itself. Raises `Misconfigured` with the cause and the cure, also where another
    process holds the lock too long.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        _lock_within(lock, path, give_up_after_s)
        with lock_held(lock):
            found = inspect(path)
            if found is None:
                _create(path)
            else:
                schema.refuse_other_version(str(path), found.version, "file")
            return _identify(path)
    except sqlite3.Error as error:
        raise Misconfigured(
            f"{SETTING}: {path} is no usable ledger ({error}): name another file, or a new one"
        ) from None
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(lock)


@dataclass(frozen=True, slots=True)
class Inside:
    """What a database says that lies where a ledger should."""

    version: str | None
    """The schema's; None for a database that is not ours."""
    sight: Sight
    fault: tuple[str, str] | None = None
    """Why it would not keep what it is given, and the cure."""


def inspect(path: Path) -> Inside | None:
    """Look whether what lies at `path` is the ledger that lived there; None where one may be made. Changes nothing.

    Raises `Misconfigured` with the cause and the cure, `sqlite3.Error` for what is no database, and `OSError`.
    """
    # Before the ledger: its mark may rise meanwhile.
    record, has_record = read_record(path), record_path(path).exists()
    log, index = beside(path, "-wal"), beside(path, "-shm")
    has_log = log.exists() and log.stat().st_size > 0
    if not path.exists() or path.stat().st_size == 0:
        if has_log or has_record:
            _refuse_gone(path, log if has_log else record_path(path))
        return None
    if path.stat().st_nlink > 1:
        raise Misconfigured(
            f"{SETTING}: {path} has a second name (a hard link), and whoever opens it by that ruins it: "
            "remove the link, or make it a copy"
        )
    if index.exists() and not log.exists():
        raise Misconfigured(
            f"{SETTING}: {path} has lost {log.name}, which services use or used: put it back, or stop all services, "
            f"delete {index.name} where it is still there then, and start them"
        )
    if record is not None:
        # Alone first: with the log of another ledger it makes no sense.
        _refuse_other_main_file(path, record)
    inside = _look_inside(path, has_log=has_log)
    if inside is None and has_record:
        _refuse_gone(path, record_path(path))
    if inside is not None and record is not None:
        _refuse_other_content(path, record, inside.sight)
    if inside is not None and inside.fault:
        _refuse(path, *inside.fault)
    return inside


def _look_inside(path: Path, *, has_log: bool) -> Inside | None:
    """What a database says of itself; None where it has no tables, because its making was cut short, or never begun."""
    # Without a write-ahead log nothing is newer than the file; opening it as immutable leaves no side files.
    mode = "mode=ro" if has_log else "mode=ro&immutable=1"
    address = f"{path.absolute().as_uri()}?{mode}"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=1, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            return None
        version = (
            connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()
            if "meta" in tables
            else None
        )
        if version is None:
            return Inside(None, Sight(None, 0))
        fault = sqlite_soundness.fault(connection) if version[0] == str(schema.VERSION) else None
        return Inside(version[0], look(connection), fault)


def _refuse_gone(path: Path, witness: Path) -> NoReturn:
    raise Misconfigured(
        f"{SETTING}: {path} is gone or empty, but {witness.name} beside it tells that a ledger was in use there: "
        f"put it back, or, to begin a new one, stop all services and delete every {path.name}* file"
    )


def _refuse_other_main_file(path: Path, record: Record) -> None:
    main = look_at_main_file(path)
    if main is not None and main.ledger_id != record.ledger_id:
        _refuse(path, _IS_ANOTHER, _cure_of_other(path))
    if record.was_swapped:
        _refuse(
            path,
            "was overwritten while services used it, and their log may have been copied into what lies there",
            f"put the right one back while all services are stopped, keep a copy of {path.name}-wal first, "
            f"and if you have put the right one back, delete only {path.name}.identity",
        )
    if main is not None and (main.mark or 0) < record.main_mark:
        _refuse(path, "was overwritten by an older one", _cure_of_other(path))


def _refuse_other_content(path: Path, record: Record, now: Sight) -> None:
    if now.ledger_id != record.ledger_id:
        _refuse(path, _IS_ANOTHER, _cure_of_other(path))
    if (now.mark or 0) < record.mark:
        _refuse(
            path,
            "was restored from a backup or has lost its -wal file, and lacks what services saw in it (its history ends "
            f"at {now.mark}, and ended at {record.mark})",
            _cure_of_older(path),
        )


def _refuse(path: Path, cause: str, cure: str) -> NoReturn:
    raise Misconfigured(f"{SETTING}: {path} {cause}: {cure}")


def _create(path: Path) -> None:
    with contextlib.closing(connect(path, _PRAGMAS, "rwc")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in schema.SQLITE:
            connection.execute(statement)
        connection.execute("COMMIT")


def _identify(path: Path) -> Sight:
    """Give the ledger an id where it has none, and write down beside it which one lives here."""
    with contextlib.closing(connect(path, _PRAGMAS)) as connection:
        if look(connection).ledger_id is None:
            connection.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", [NAME, new_id()])
        # The main file alone must tell whose it is, should another be copied over it.
        main = look_at_main_file(path)
        has_id = main is None or main.ledger_id is not None
        is_on_disk = copy_log(connection, "PASSIVE" if has_id else "FULL")
        main = look_at_main_file(path)
        if main is not None and main.ledger_id is None:
            raise Misconfigured(
                f"{SETTING}: the log of {path} cannot be copied into it, because somebody reads it for long or the "
                "disk is full: end that, and start again"
            )
        sight = look(connection)
    main_mark = (main.mark or 0) if main is not None and is_on_disk else 0
    with contextlib.closing(RecordFile(path)) as file:
        file.write(Record(str(sight.ledger_id), sight.mark or 0, main_mark))
    return sight


def _unusable(path: Path, error: OSError) -> Misconfigured:
    return Misconfigured(f"{SETTING}: {path} cannot be used ({error.strerror}): name a file where this user may write")


def _lock_within(lock: int, path: Path, seconds: float) -> None:
    """Take the lock, polling: a thread that waits for it inside the kernel could not be told to stop."""
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise Misconfigured(
                    f"{SETTING}: another process has held {lock_path(path)} for {seconds:g} s: "
                    "end the one that stands still"
                ) from None
            time.sleep(LOCK_POLL_S)
