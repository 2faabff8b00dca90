"""The SQLite driver: one host, many processes, WAL, every commit on disk before it is told."""

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from services.errors import LedgerRefused, LedgerUnavailable, Misconfigured
from services.ledger import schema
from services.ledger.committer import Row, Transaction
from services.ledger.dialect import Dialect, render

NOW_MS = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"

DIALECT = Dialect(
    now_ms=NOW_MS,
    rows=lambda columns: (
        f"(SELECT {', '.join(f'value->>{n} AS {name}' for n, name in enumerate(columns))} FROM json_each(:rows))"  # noqa: S608 (column names are the statements' own)
    ),
    for_update="",  # who writes holds the only lock
    parameter=r":\1",
)

_WRITER_PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA temp_store = MEMORY",
)
LOCK_POLL_S = 0.05
_READER_PRAGMAS = ("PRAGMA query_only = ON", "PRAGMA busy_timeout = 5000", "PRAGMA temp_store = MEMORY")


class SqliteTransaction:
    """Statements on one connection; rendering is cached by their text."""

    def __init__(self, connection: sqlite3.Connection, dialect: Dialect = DIALECT) -> None:
        self._connection = connection
        self._dialect = dialect

    def execute(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> list[Row]:
        """Run one statement in the common dialect; `rows` become its JSON parameter."""
        if "{rows" in statement:
            parameters["rows"] = json.dumps(rows, separators=(",", ":"))
        cursor = self._connection.execute(render(statement, self._dialect), parameters)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]


class SqliteDriver:
    """The writer's connection."""

    def __init__(self, path: Path) -> None:
        """Open an existing ledger; raises `LedgerUnavailable`."""
        self._path = path
        with _faults_told():
            self._file = _identity(path)
            self._connection = _connect(path, _WRITER_PRAGMAS)
            self._lock = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def run(self, work: Callable[[Transaction], None]) -> None:
        """Run `work` in one transaction; raises `LedgerUnavailable`, and then nothing of it is written.

        A file that was moved away could still be written, but nobody who comes later would find it.
        """
        with _faults_told(), _lock_held(self._lock):
            if _identity(self._path) != self._file:
                raise LedgerUnavailable(
                    f"{self._path} is another file than the one that was opened: put that back, or restart the services"
                )
            # IMMEDIATE: a deferred transaction that reads first fails at once when another writer was faster.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                work(SqliteTransaction(self._connection))
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close connection and lock file."""
        self._connection.close()
        os.close(self._lock)


class SqliteReader:
    """A read-only connection; each read is a short transaction of its own, or the WAL would grow for ever."""

    def __init__(self, path: Path) -> None:
        self._connection = _connect(path, _READER_PRAGMAS)

    def read(self, work: Callable[[Transaction], Any]) -> Any:
        """Run `work` on one snapshot; raises `LedgerUnavailable`."""
        with _faults_told():
            self._connection.execute("BEGIN")
            try:
                return work(SqliteTransaction(self._connection))
            finally:
                self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def lock_path(path: Path) -> Path:
    """The side file whose lock orders the writers: waiting for it wakes at once, SQLite's own busy wait polls."""
    return path.with_name(path.name + ".lock")


def prepare(path: Path, give_up_after_s: float) -> None:
    """Make the ledger file where there is none, and refuse one that is not ours to write, untouched.

    Raises `Misconfigured` with the cause and the cure, also where another process holds the lock too long.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(
            f"EVENLOAD_LEDGER_URL: {path} cannot be used ({error.strerror}): name a file where this user may write"
        ) from None
    try:
        _lock_within(lock, path, give_up_after_s)
        with _lock_held(lock):
            if path.exists() and path.stat().st_size > 0 and not _is_blank(path):
                _refuse_foreign(path)
            else:
                _create(path)
    except sqlite3.Error as error:
        raise Misconfigured(
            f"EVENLOAD_LEDGER_URL: {path} is no usable ledger ({error}): name another file, or a new one"
        ) from None
    finally:
        os.close(lock)


def _is_blank(path: Path) -> bool:
    """Whether a database has no tables: its making was cut short, or never begun."""
    with contextlib.closing(_connect_read_only(path)) as connection:
        return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _refuse_foreign(path: Path) -> None:
    with contextlib.closing(_connect_read_only(path)) as connection:
        ours = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'").fetchone()
        version = (
            connection.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone() if ours else None
        )
    schema.refuse_other_version(str(path), version[0] if version else None, "file")


def _create(path: Path) -> None:
    with contextlib.closing(_connect(path, _WRITER_PRAGMAS, "rwc")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for statement in schema.SQLITE:
            connection.execute(statement)
        connection.execute("COMMIT")


def _connect_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)


def _identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _connect(path: Path, pragmas: Sequence[str], mode: str = "rw") -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    for pragma in pragmas:
        connection.execute(pragma)
    return connection


def _lock_within(lock: int, path: Path, seconds: float) -> None:
    """Take the lock, polling: a thread that waits for it inside the kernel could not be told to stop."""
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise Misconfigured(
                    f"EVENLOAD_LEDGER_URL: another process has held {lock_path(path)} for {seconds:g} s: "
                    "end the one that stands still"
                ) from None
            time.sleep(LOCK_POLL_S)


@contextlib.contextmanager
def _lock_held(lock: int) -> Iterator[None]:
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


@contextlib.contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.DataError) as error:
        raise LedgerRefused(f"SQLite: {error}", error.sqlite_errorname) from error
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"SQLite: {error}") from error
    except OSError as error:
        raise LedgerUnavailable(f"{error.filename or 'the ledger'}: {error.strerror}") from error
