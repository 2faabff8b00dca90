"""Whether a SQLite file would keep what it is given: a history, and one row per request."""

import sqlite3

from services.ledger.identity import Seen

_CURE = "put a whole copy of the ledger there, as SQLite's `.backup` makes it"
_TRIGGERS = ("request_accepted", "request_changed")
_UNIQUE = ("id", "idempotency_key")
_FIND_TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'request'"
_FIND_UNIQUE = """
SELECT max(c.name) FROM pragma_index_list('request') AS i JOIN pragma_index_info(i.name) AS c
WHERE i."unique" = 1 AND i.partial = 0 GROUP BY i.name HAVING count(*) = 1
"""


def fault(connection: sqlite3.Connection) -> tuple[str, str] | None:
    """The cause and the cure of what is wrong with a ledger; None where it is sound. Raises `sqlite3.Error`."""
    for wanted, query, cause in (
        (_TRIGGERS, _FIND_TRIGGERS, "lacks a trigger of the table request, so that it keeps no history"),
        (_UNIQUE, _FIND_UNIQUE, "has no unique index on a column of request, so that it may keep a request twice"),
    ):
        found = {row[0] for row in connection.execute(query)}
        missing = [one for one in wanted if one not in found]
        if missing:
            return f"{cause} ({', '.join(missing)})", _CURE
    return None


class Soundness:
    """Looks at one connection's ledger again whenever its tables have changed."""

    def __init__(self) -> None:
        self._sound_version: int | None = None
        """SQLite's number of the tables that were found sound."""

    def require(self, connection: sqlite3.Connection, seen: Seen) -> None:
        """Raise `LedgerUnavailable` unless the ledger is sound, and `sqlite3.Error`."""
        [version] = connection.execute("PRAGMA schema_version").fetchone()
        if version != self._sound_version:
            if found := fault(connection):
                seen.refuse(*found)
            self._sound_version = version
