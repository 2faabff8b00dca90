"""The SQLite driver: one host, many processes, WAL, every commit on disk before it is told."""

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from services.errors import LedgerRefused, LedgerUnavailable
from services.ledger.committer import Row, Transaction
from services.ledger.dialect import Dialect, render
from services.ledger.identity import Seen
from services.ledger.sqlite_files import (
    OpenFiles,
    Record,
    RecordFile,
    copy_log,
    lock_path,
    look,
    look_at_main_file,
    read_record,
)
from services.ledger.sqlite_soundness import Soundness

NOW_MS = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"

DIALECT = Dialect(
    now_ms=NOW_MS,
    rows=lambda parameter, columns: (
        f"(SELECT {', '.join(f'value->>{n} AS {name}' for n, name in enumerate(columns))} FROM json_each(:{parameter}))"  # noqa: S608 (column names are the statements' own)
    ),
    for_update="",  # who writes holds the only lock
    written="NULL",  # what can be read is on disk
    parameter=r":\1",
)

WRITER_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA temp_store = MEMORY",
)
_READER_PRAGMAS = ("PRAGMA query_only = ON", "PRAGMA busy_timeout = 5000", "PRAGMA temp_store = MEMORY")


_ABOUT_VALUES = (sqlite3.IntegrityError, sqlite3.DataError)


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

    def refusal(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> LedgerRefused | None:
        """Try the statement within a savepoint that is rolled back; returns why it is refused, else None."""
        refused: LedgerRefused | None = None
        self._connection.execute("SAVEPOINT trial")
        try:
            self.execute(statement, rows, **parameters)
        except _ABOUT_VALUES as error:
            if not self._connection.in_transaction:
                raise  # a trigger has undone the whole transaction
            refused = _refused(error)
        self._connection.execute("ROLLBACK TO trial")
        self._connection.execute("RELEASE trial")
        return refused


class SqliteDriver:
    """The writer's connection, and the side file in which it leaves word of the ledger."""

    def __init__(self, path: Path, seen: Seen) -> None:
        """Open an existing ledger, which must be the one that was seen; raises `LedgerUnavailable`."""
        self._path = path
        self._seen = seen
        self._was_wrong = False
        self._soundness = Soundness()
        record = read_record(path)
        self._main_mark_on_disk = record.main_mark if record else 0
        with contextlib.ExitStack() as opened, _faults_told():
            self._lock = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, self._lock)
            with lock_held(self._lock):
                _require_right_file(path, seen)
                self._connection = opened.enter_context(contextlib.closing(connect(path, WRITER_PRAGMAS)))
                seen.check(look(self._connection), seen.mark)
                self._files = OpenFiles(path, seen)
                self._record = RecordFile(path)
            opened.pop_all()

    def run(self, work: Callable[[Transaction], None]) -> None:
        """Run `work` in one transaction; raises `LedgerUnavailable`, and then nothing of it is written.

        A file that was moved away or replaced could still be written, but nobody who comes later would find it.
        """
        with _faults_told(), _refusals_told(), lock_held(self._lock):
            mark = self._seen.mark
            self._require_own_files()
            # IMMEDIATE: a deferred transaction that reads first fails at once when another writer was faster.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._seen.check(look(self._connection), mark)
                self._soundness.require(self._connection, self._seen)
                work(SqliteTransaction(self._connection))
                sight = look(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            self._seen.note(sight)
            self._record.write(self._own_record(sight.mark or 0))

    def _require_own_files(self) -> None:
        """Raise `LedgerUnavailable` unless all files are those that were opened, and hold what they held."""
        self._files.refresh()
        if fault := self._files.main_moved():
            self._was_wrong = True
            self._seen.refuse(fault)
        # The main file comes before the log: the log is copied only into a file that is still the right one.
        has_changed = self._files.main_has_changed
        if has_changed and (fault := self._files.main_fault()):
            self._was_wrong = True
            # The last connection that closes copies the log into that file. The next start must know it.
            self._record.write(self._own_record(self._seen.mark, was_swapped=True))
            self._seen.refuse(fault)
        if lost := self._files.lost():
            if self._files.log_is_gone and self._files.main_is_known:
                # Whoever starts later would not find what stands only there.
                copy_log(self._connection, "FULL")
            _refuse_without(lost, self._seen)
        if has_changed and copy_log(self._connection):
            self._main_mark_on_disk = self._seen.main_mark
        if self._was_wrong:
            # Pages that were read from the wrong file must not be taken for the right one's.
            self._connection.execute("PRAGMA shrink_memory")
            self._was_wrong = False

    def _own_record(self, mark: int, *, was_swapped: bool = False) -> Record:
        return Record(str(self._seen.ledger_id), mark, self._main_mark_on_disk, was_swapped)

    def close(self) -> None:
        """Close connection and side files."""
        with lock_held(self._lock):  # the last one that closes writes the main file
            with contextlib.suppress(LedgerUnavailable, sqlite3.Error, OSError):
                self._require_own_files()
            self._connection.close()
        self._record.close()
        os.close(self._lock)


class SqliteReader:
    """A read-only connection; each read is a short transaction of its own, or the WAL would grow for ever."""

    def __init__(self, path: Path, seen: Seen) -> None:
        """Nothing is opened before the first read."""
        self._path = path
        self._seen = seen
        self._opened: tuple[sqlite3.Connection, OpenFiles, int] | None = None
        self._was_wrong = False
        self._soundness = Soundness()

    def read(self, work: Callable[[Transaction], Any]) -> Any:
        """Run `work` on one snapshot; raises `LedgerUnavailable`, also where it is not the ledger that was seen."""
        with _faults_told():
            mark = self._seen.mark
            connection, files, lock = self._opened or self._open()
            self._require_own_files(connection, files, lock)
            connection.execute("BEGIN")
            try:
                sight = look(connection)
                self._seen.check(sight, mark)
                self._seen.note(sight)
                self._soundness.require(connection, self._seen)
                return work(SqliteTransaction(connection))
            finally:
                connection.execute("ROLLBACK")

    def _open(self) -> tuple[sqlite3.Connection, OpenFiles, int]:
        with contextlib.ExitStack() as opened:
            lock = os.open(lock_path(self._path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, lock)
            # Where somebody writes just now, the first read looks.
            with contextlib.suppress(BlockingIOError), lock_held(lock, fcntl.LOCK_SH | fcntl.LOCK_NB):
                _require_right_file(self._path, self._seen)
            connection = opened.enter_context(contextlib.closing(connect(self._path, _READER_PRAGMAS)))
            self._seen.check(look(connection), self._seen.main_mark)
            self._opened = connection, OpenFiles(self._path, self._seen), lock
            opened.pop_all()
        return self._opened

    def _require_own_files(self, connection: sqlite3.Connection, files: OpenFiles, lock: int) -> None:
        files.refresh()
        fault = files.main_moved()
        if fault is None and files.main_has_changed:
            # Where somebody writes just now, the next read looks: this one must not wait for a writer.
            with contextlib.suppress(BlockingIOError), lock_held(lock, fcntl.LOCK_SH | fcntl.LOCK_NB):
                fault = files.main_fault()
        if fault:
            self._was_wrong = True
            self._seen.refuse(fault)
        if lost := files.lost():
            _refuse_without(lost, self._seen)
        if self._was_wrong:
            connection.execute("PRAGMA shrink_memory")
            self._was_wrong = False

    def interrupt(self) -> None:
        """Let the statement fail that runs in another thread."""
        with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed just now
            if self._opened is not None:
                self._opened[0].interrupt()

    def close(self) -> None:
        """Close the connection."""
        if self._opened is not None:
            connection, _, lock = self._opened
            connection.close()
            os.close(lock)


def _require_right_file(path: Path, seen: Seen) -> None:
    """Raise `LedgerUnavailable` where another file lies there: opened, it would be given the right one's log."""
    if not path.exists():
        seen.refuse("is gone")
    if main := look_at_main_file(path):
        seen.check(main, seen.main_mark)


def _refuse_without(lost: Path, seen: Seen) -> NoReturn:
    """Raise `LedgerUnavailable` for a side file of SQLite's that was deleted or replaced while it is in use."""
    seen.refuse(f"has lost {lost.name}, which services use", "put it back, or stop all services and start them again")


def connect(path: Path, pragmas: Sequence[str], mode: str = "rw") -> sqlite3.Connection:
    """A connection; raises `sqlite3.Error`."""
    address = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    for pragma in pragmas:
        connection.execute(pragma)
    return connection


@contextlib.contextmanager
def lock_held(lock: int, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the writers' lock; without waiting where `kind` says so, and then it raises `BlockingIOError`."""
    fcntl.flock(lock, kind)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


def _refused(error: sqlite3.Error) -> LedgerRefused:
    """A refusal in our words: SQLite's own, and a trigger's, may hold values."""
    return LedgerRefused(f"SQLite: {error.sqlite_errorname}", error.sqlite_errorname)


@contextlib.contextmanager
def _refusals_told() -> Iterator[None]:
    try:
        yield
    except _ABOUT_VALUES as error:
        raise _refused(error) from None


@contextlib.contextmanager
def _faults_told() -> Iterator[None]:
    try:
        yield
    except _ABOUT_VALUES as error:
        raise LedgerUnavailable(f"SQLite: {error.sqlite_errorname}") from None
    except sqlite3.Error as error:
        raise LedgerUnavailable(f"SQLite: {error}") from error
    except OSError as error:
        raise LedgerUnavailable(f"{error.filename or 'the ledger'}: {error.strerror}") from error
