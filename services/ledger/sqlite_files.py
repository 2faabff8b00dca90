"""The files of a SQLite ledger: which ledger lives there, and whether they still are the ones that were opened."""

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from services.ledger.identity import Seen, Sight

LOOK_AGAIN_S = 0.05
"""Others, like SQLite's shell, write the main file without the writers' lock: they may be in the midst of it."""
_LOOK = (
    "SELECT (SELECT value FROM meta WHERE name = 'ledger_id'), "
    "coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'transition'), 0)"
)


def beside(path: Path, suffix: str) -> Path:
    """A file beside the ledger; beside the file itself where the ledger's name is a symbolic link, as SQLite has it."""
    real = path.resolve()
    return real.with_name(real.name + suffix)


def lock_path(path: Path) -> Path:
    """The side file whose lock orders the writers: waiting for it wakes at once, SQLite's own busy wait polls."""
    return beside(path, ".lock")


def record_path(path: Path) -> Path:
    """The side file that tells the next start which ledger lives here, and how far its history got."""
    return beside(path, ".identity")


def look(connection: sqlite3.Connection) -> Sight:
    """What the ledger says of itself, in the connection's transaction; raises `sqlite3.Error`."""
    ledger_id, mark = connection.execute(_LOOK).fetchone()
    return Sight(ledger_id, mark)


def look_at_main_file(path: Path) -> Sight | None:
    """What the main file alone says, without its write-ahead log; raises `sqlite3.Error` where it cannot be opened.

    Returns a sight without an id for what is no ledger. Returns None where it cannot be known: a checkpoint that was
    cut short, or had to spare a reader, leaves a file that makes sense only together with its log.
    Best called with the writers' lock, so that nobody writes the main file meanwhile.
    """
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
        try:
            # With it SQLite bears a file that is shorter than its first page tells, as a partial checkpoint leaves it.
            connection.execute("PRAGMA writable_schema = ON")
            return look(connection)
        except sqlite3.Error as error:
            code = error.sqlite_errorcode & 0xFF
            if code == sqlite3.SQLITE_CORRUPT:
                return None
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):  # no database, or without our tables
                return Sight(None, 0)
            raise


def copy_log(connection: sqlite3.Connection, mode: str = "PASSIVE") -> bool:
    """Copy the log into the main file; whether all of it is there, and on the disk."""
    try:
        is_busy, in_log, copied = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    except sqlite3.Error:  # a full disk, say: the log still holds everything
        return False
    return not is_busy and in_log == copied


@dataclass(frozen=True, slots=True)
class Record:
    """What the side file tells; it is never ahead of what is on the disk, because it is written after a commit."""

    ledger_id: str
    mark: int
    main_mark: int
    """The mark of the main file alone when it was last known to be on the disk: only a whole checkpoint is synced."""
    was_swapped: bool = False
    """Somebody changed the main file under services that had it open."""

    def __str__(self) -> str:
        """One line, always equally long, so that it is written in place."""
        return (
            f"{self.ledger_id} {self.mark:020d} {self.main_mark:020d} {'swapped' if self.was_swapped else 'sound  '}\n"
        )


def read_record(path: Path) -> Record | None:
    """The record of the ledger at `path`; None where there is none, or a power cut left none that can be read."""
    try:
        ledger_id, mark, main_mark, state = record_path(path).read_text("ascii").split()
        return Record(ledger_id, int(mark), int(main_mark), state == "swapped")
    except (FileNotFoundError, ValueError):
        return None


class RecordFile:
    """The open side file; who writes it has the writers' lock."""

    def __init__(self, path: Path) -> None:
        """Open it, and make it where there is none; raises `OSError`."""
        self._path = record_path(path)
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, record: Record) -> None:
        """Write it in place, or anew where it was deleted; where the disk refuses, the record lags, which is safe.

        That the main file was swapped must be on the disk before that file can be written, so it is waited for.
        """
        with contextlib.suppress(OSError):
            if os.fstat(self._descriptor).st_nlink == 0:
                anew = self._open()
                os.close(self._descriptor)
                self._descriptor = anew
            os.pwrite(self._descriptor, str(record).encode("ascii"), 0)
            if record.was_swapped:
                os.fsync(self._descriptor)
                _sync_folder(self._path.parent)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


class OpenFiles:
    """The files of a ledger as one connection opened them: main file, write-ahead log, and its index."""

    def __init__(self, path: Path, seen: Seen) -> None:
        """Remember the files of a connection that has read from them; raises `OSError`."""
        self._path = path
        self._seen = seen
        self._log, self._index = beside(path, "-wal"), beside(path, "-shm")
        self._state: tuple[int, int] | None = None
        self.main_is_known = False
        """Whether the last look at the main file alone could read it."""
        self.refresh()
        self._opened = [_inode(one) for one in self._about]

    def refresh(self) -> None:
        """Look at the files' names and times: what is told below is as it was at this moment. Raises `OSError`."""
        self._about = [_about(one) for one in (self._path, self._log, self._index)]

    def main_moved(self) -> str | None:
        """What became of the main file, as the end of a sentence; None while it lies where it was opened."""
        if self._about[0] is None:
            return "is gone"
        return None if _inode(self._about[0]) == self._opened[0] else "is another file than the one that was opened"

    def lost(self) -> Path | None:
        """The log or the index, where it was deleted or replaced, though it is in use."""
        _, log, index = (_inode(one) == opened for one, opened in zip(self._about, self._opened, strict=True))
        return None if log and index else self._index if log else self._log

    @property
    def log_is_gone(self) -> bool:
        """Whether the write-ahead log has no name any more; who has it open reads it all the same."""
        return self._about[1] is None

    @property
    def main_has_changed(self) -> bool:
        """Whether somebody wrote the main file since it was last looked at, as SQLite does once in a while."""
        return _state(self._about[0]) != self._state

    def main_fault(self) -> str | None:
        """Look at the main file alone, with the writers' lock; None unless it surely lacks what it had.

        Raises `sqlite3.Error` where it cannot be opened.
        """
        if self._lacks_something():
            time.sleep(LOOK_AGAIN_S)
            if self._lacks_something():
                return "was overwritten by another or an older file while it was open"
        return None

    def _lacks_something(self) -> bool:
        state = _state(_about(self._path))
        main = look_at_main_file(self._path)
        self.main_is_known = main is not None
        if main is not None:
            if main.ledger_id != self._seen.ledger_id or (main.mark or 0) < self._seen.main_mark:
                return True
            self._seen.note_main(main.mark or 0)
        self._state = state
        return False


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _about(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 (a third faster, before every transaction)
    except FileNotFoundError:
        return None


def _inode(about: os.stat_result | None) -> tuple[int, int] | None:
    return None if about is None else (about.st_dev, about.st_ino)


def _state(about: os.stat_result | None) -> tuple[int, int] | None:
    return None if about is None else (about.st_mtime_ns, about.st_size)
