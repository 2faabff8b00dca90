"""The PostgreSQL driver: many hosts; every write a READ COMMITTED transaction, every read one snapshot."""

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import errors
from psycopg.rows import dict_row

from services.errors import LedgerUnavailable
from services.ledger.committer import Answer, Row, Transaction
from services.ledger.dialect import INTEGER_COLUMNS, Dialect, render

CONNECT_TIMEOUT_S = 3
HELD_TIMEOUT_MS = 2_000
"""A process that stands still inside a transaction loses it, and its locks."""
LOCK_TIMEOUT_MS = 3_000
STATEMENT_TIMEOUT_MS = 4_000
"""Below the deadlines of writes and reads, so that they are answered by a cause, not by silence."""
RETRY_FOR_S = 4.0
RETRY_PAUSE_S = 0.02

BEGIN_WRITING = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_SETTINGS = {
    "search_path": "public,pg_temp",
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(HELD_TIMEOUT_MS),
    # Every statement finds a few rows by an index. What the planner thinks of a table that has grown since it was
    # analysed must not make it read all of it; nor a plan that was made while it was empty.
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
_UNDONE = (errors.DeadlockDetected, errors.SerializationFailure)


def _rows(columns: tuple[str, ...]) -> str:
    values = (
        f"CAST(value->>{number} AS bigint) AS {name}" if name in INTEGER_COLUMNS else f"value->>{number} AS {name}"
        for number, name in enumerate(columns)
    )
    return f"(SELECT {', '.join(values)} FROM json_array_elements(CAST(:rows AS json)))"  # noqa: S608 (column names are the statements' own)


DIALECT = Dialect(
    now_ms="CAST(extract(epoch FROM statement_timestamp()) * 1000 AS bigint)",
    rows=_rows,
    for_update="FOR NO KEY UPDATE",
    parameter=r"%(\1)s",
)


def connect(address: str) -> psycopg.Connection[Row]:
    """A connection as the ledger needs it; raises `psycopg.Error`."""
    given = psycopg.conninfo.conninfo_to_dict(address)
    options = [*(f"-c {name}={value}" for name, value in _SETTINGS.items()), str(given.get("options") or "")]
    settings: dict[str, Any] = {
        "application_name": "evenload",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": STATEMENT_TIMEOUT_MS,
        **given,
        "options": " ".join(options).strip(),
    }
    return psycopg.connect(**settings, autocommit=True, row_factory=dict_row)


class PostgresTransaction:
    """Statements on one connection; rendering is cached by their text."""

    def __init__(self, connection: psycopg.Connection[Row]) -> None:
        self._connection = connection

    def execute(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> list[Row]:
        """Run one statement in the common dialect; `rows` become its JSON parameter."""
        given = {name: _storable(value) for name, value in parameters.items()}
        if "{rows" in statement:
            # An update locks what it changes in the order of its rows, whose first column is the id.
            ordered = sorted(rows, key=lambda row: row[0]) if statement.lstrip().startswith("UPDATE") else rows
            given["rows"] = json.dumps(
                [[_storable(value) for value in row] for row in ordered], ensure_ascii=False, separators=(",", ":")
            )
        cursor = self._connection.execute(render(statement, DIALECT), given)
        return cursor.fetchall() if cursor.description else []


class _Session:
    """A connection that is made when it is needed, and anew after it was lost."""

    def __init__(self, address: str, begin: LiteralString) -> None:
        self._address = address
        self._begin = begin
        self._connection: psycopg.Connection[Row] | None = None

    def transact(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` in a transaction; again where it was undone without a trace. Raises `LedgerUnavailable`."""
        give_up_at = time.monotonic() + RETRY_FOR_S
        while True:
            is_committing = False
            try:
                connection = self._connected()
                connection.execute(self._begin)
                answer = work(PostgresTransaction(connection))
                is_committing = True
                connection.execute("COMMIT")
                return answer
            except psycopg.Error as error:
                is_lost = self._is_lost_after_rollback()
                if is_committing and is_lost:
                    raise LedgerUnavailable(
                        f"PostgreSQL: connection lost during the commit, whose outcome is unknown: {told(error)}"
                    ) from error
                may_go_again = isinstance(error, _UNDONE) or is_lost
                if not may_go_again or time.monotonic() > give_up_at:
                    raise LedgerUnavailable(f"PostgreSQL: {told(error)}") from error
                time.sleep(random.uniform(RETRY_PAUSE_S / 4, RETRY_PAUSE_S))  # noqa: S311 (spreads rivals)
            except BaseException:
                self._is_lost_after_rollback()
                raise

    def _connected(self) -> psycopg.Connection[Row]:
        if self._connection is None:
            try:
                self._connection = connect(self._address)
            except psycopg.Error as error:
                raise LedgerUnavailable(f"PostgreSQL: {told(error)}") from error
        return self._connection

    def _is_lost_after_rollback(self) -> bool:
        """Roll back; whether the connection does not live any more, and was given up."""
        if self._connection is None:
            return True
        try:
            self._connection.rollback()
        except psycopg.Error:
            self._connection.close()
        if self._connection.closed:
            self._connection = None
        return self._connection is None

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()


class PostgresDriver:
    """The writer's connection."""

    def __init__(self, address: str) -> None:
        self._session = _Session(address, BEGIN_WRITING)

    def run(self, work: Callable[[Transaction], None]) -> None:
        """Run `work` in one transaction, several times if need be; raises `LedgerUnavailable`."""
        self._session.transact(work)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


class PostgresReader:
    """A read-only connection; each read is a short transaction of its own."""

    def __init__(self, address: str) -> None:
        self._session = _Session(address, BEGIN_READING)

    def read(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` on one snapshot; raises `LedgerUnavailable`."""
        return self._session.transact(work)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def told(error: psycopg.Error) -> str:
    """The error in one line, without the row that it is about."""
    return error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__


def _storable(value: object) -> object:
    """PostgreSQL knows neither NUL nor lone surrogates; an id with one is asked for as another that is not there."""
    if isinstance(value, str) and not value.isprintable():
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    return value
