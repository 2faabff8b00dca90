"""How a PostgreSQL ledger is known again: its id and mark come along with BEGIN and COMMIT, without a round trip."""

import time
from typing import LiteralString

from psycopg import errors

from services.errors import LedgerUnavailable
from services.ledger import postgres_soundness
from services.ledger.identity import Seen, Sight
from services.ledger.postgres_connection import Connection

CHECK_EVERY_S = 0.3
"""How often a connection looks whether its tables are sound; shorter than the pause between a process's looks."""

# The sequence survives the deletion of old history. A user who may not read it has no mark, and sees only the id.
_MARK: LiteralString = (
    "CASE WHEN has_sequence_privilege('public.transition_number_seq', 'SELECT') "
    "THEN coalesce(pg_sequence_last_value('public.transition_number_seq'), 0) END AS mark"
)
_FROM: LiteralString = " FROM public.meta WHERE name = 'ledger_id'"
_LOOK: LiteralString = "SELECT value AS ledger_id, " + _MARK + _FROM
_LOOK_CLOSELY: LiteralString = "SELECT value AS ledger_id, " + _MARK + ", " + postgres_soundness.COLUMNS + _FROM
# A sequence is ahead of what is committed, and a server that crashes may set it back, unless this transaction's
# commit has waited for the disk: then all that it saw is there, too. It waits only where it has changed something.
_LOOK_AND_COMMIT: LiteralString = f"SELECT {_MARK}, pg_current_xact_id_if_assigned() IS NOT NULL AS waits; COMMIT"


def seen_at(place: str) -> Seen:
    """What a process has seen of the ledger at `place`: nothing yet."""
    return Seen(place, "put the right one back, or restart all services to go on with what lies there")


def begin(connection: Connection, begin: LiteralString, seen: Seen | None) -> None:
    """Begin a transaction in the ledger that was seen.

    Raises `LedgerUnavailable` where it is another or an older one, or would not keep what it is given. The connection
    is closed then: the address may lead to the right one again. Raises `psycopg.Error`.
    """
    if seen is None:
        connection.begin(begin)
        return
    mark = seen.mark
    now = time.monotonic()
    is_due = connection.sound_at is None or now - connection.sound_at > CHECK_EVERY_S
    try:
        found = connection.begin(begin, _LOOK_CLOSELY if is_due else _LOOK)
        seen.check(Sight(found["ledger_id"], found["mark"]) if found else Sight(None, None), mark)
        if is_due and found:
            if fault := postgres_soundness.fault(found):
                seen.refuse(*fault)
            connection.sound_at = now
    except errors.UndefinedTable:
        connection.close()
        seen.refuse("holds no ledger any more")
    except LedgerUnavailable:
        connection.close()
        raise


def commit(connection: Connection, seen: Seen | None) -> None:
    """Commit, and remember how far the history has got; raises `psycopg.Error`."""
    if seen is None:
        connection.complete()
        return
    found = connection.complete(_LOOK_AND_COMMIT)
    if found and found["waits"]:
        seen.note(Sight(None, found["mark"]))
