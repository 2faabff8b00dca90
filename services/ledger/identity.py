"""Which ledger a process uses, and how far it has seen that ledger's history get: another or an older one is refused.

The *mark* is the number of the newest line of the history. It only rises, also when old lines are deleted, so that a
ledger with a lower mark than before lacks something that was committed.
"""

import secrets
import threading
from dataclasses import dataclass
from typing import NoReturn

from services.errors import LedgerUnavailable
from services.logs import get_logger

log = get_logger(__name__)

NAME = "ledger_id"
"""The name of the id in the table `meta`; whoever uses a ledger first makes it."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a ledger says of itself."""

    ledger_id: str | None
    """None for one that nobody has used since ledgers have ids."""
    mark: int | None
    """None where this user may not read it."""


class Seen:
    """What one process has seen of its ledger; shared by its writing and its reading thread."""

    def __init__(self, place: str, cure: str, cure_of_older: str | None = None) -> None:
        """`place` and `cure` are told where the ledger is not the one that was seen; an older one may have its own."""
        self.place = place
        self.cure = cure
        self.cure_of_older = cure_of_older
        self._ledger_id: str | None = None
        self._is_told_of_no_mark = False
        self._mark = 0
        self._main_mark = 0
        self._lock = threading.Lock()

    @property
    def ledger_id(self) -> str | None:
        """The id of the ledger that was seen; None before the first sight."""
        return self._ledger_id

    @property
    def mark(self) -> int:
        """The highest mark that was committed; read it before the transaction whose sight is checked against it."""
        return self._mark

    @property
    def main_mark(self) -> int:
        """The highest mark that was seen in a ledger's main file alone, without its write-ahead log."""
        return self._main_mark

    def note_main(self, mark: int) -> None:
        """Remember what was read from the main file alone."""
        with self._lock:
            self._main_mark = max(self._main_mark, mark)

    def note(self, sight: Sight) -> None:
        """Remember what was read from the ledger and is committed."""
        with self._lock:
            self._ledger_id = self._ledger_id or sight.ledger_id
            self._mark = max(self._mark, sight.mark or 0)

    def check(self, sight: Sight, mark: int) -> None:
        """Raise `LedgerUnavailable` unless this is the ledger that was seen, with a history up to `mark` at least."""
        if self._ledger_id is None:
            return
        if sight.ledger_id != self._ledger_id:
            self.refuse("is another ledger than the one that this process uses")
        if sight.mark is None:
            self._tell_of_no_mark()
        elif sight.mark < mark:
            self.refuse(
                f"was restored from a backup, and lacks what this process saw in it (its history ends at {sight.mark}, "
                f"and ended at {mark})",
                self.cure_of_older,
            )

    def _tell_of_no_mark(self) -> None:
        if not self._is_told_of_no_mark:
            self._is_told_of_no_mark = True
            log.warning(
                "ledger_mark_not_readable",
                cause=f"{self.place} cannot be told from an older copy of itself, because this user may not read "
                "transition_number_seq",
                cure="run the SQL of `python -m services.ledger.provision` again, as the owner",
            )

    def refuse(self, cause: str, cure: str | None = None) -> NoReturn:
        """Raise `LedgerUnavailable` with the place, this cause, and the cure, where it needs no other one."""
        raise LedgerUnavailable(f"{self.place} {cause}: {cure or self.cure}")


def new_id() -> str:
    """An id that no other ledger has."""
    return secrets.token_hex(16)
