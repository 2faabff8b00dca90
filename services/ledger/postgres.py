"""The PostgreSQL driver: many hosts; every write a READ COMMITTED transaction, every read one snapshot."""

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import errors

from services.errors import LedgerRefused, LedgerUnavailable
from services.ledger import postgres_identity
from services.ledger.committer import Answer, Row, Transaction
from services.ledger.dialect import INTEGER_COLUMNS, Dialect, render
from services.ledger.identity import Seen
from services.ledger.postgres_connection import Connection, connect
from services.ledger.postgres_refusals import is_from_rule, told

RETRY_FOR_S = 4.0
RETRY_PAUSE_S = 0.02
RETRY_PAUSE_MAX_S = 0.3

BEGIN_WRITING = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
BEGIN_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

_UNDONE = (errors.DeadlockDetected, errors.SerializationFailure)
_ABOUT_VALUES = ("09", "20", "22", "23", "27", "2F", "38", "39", "44", "54", "P0")
"""Classes of SQLSTATE that are about a row: its data, a constraint, a limit, or a trigger that fails on it."""
_NOT_ABOUT_VALUES = ("40", "2200H")
"""Rivals, and a sequence that is used up; whoever raises the former by hand asks for another try."""
_STATEMENT_FAILED = ("21", "22", "40", "42501", "53", "55", "57014")
"""Beginnings of SQLSTATE which, beside `_ABOUT_VALUES`, leave the connection as good as before. After any other it is
given up."""
_SCHEMA_CHANGED = "42"
"""The class of what a session's old plans meet after a change of the tables. A new session has none."""


def _rows(parameter: str, columns: tuple[str, ...]) -> str:
    values = (
        f"CAST(value->>{number} AS bigint) AS {name}" if name in INTEGER_COLUMNS else f"value->>{number} AS {name}"
        for number, name in enumerate(columns)
    )
    return f"(SELECT {', '.join(values)} FROM json_array_elements(CAST(:{parameter} AS json)))"  # noqa: S608 (column names are the statements' own)


DIALECT = Dialect(
    now_ms="CAST(extract(epoch FROM statement_timestamp()) * 1000 AS bigint)",
    rows=_rows,
    for_update="FOR NO KEY UPDATE",
    # A transaction that has a transaction id but wrote no WAL does not wait.
    written="pg_logical_emit_message(true, 'evenload', '')",
    parameter=r"%(\1)s",
)


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

    def refusal(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> LedgerRefused | None:
        """Try the statement within a savepoint that is rolled back; returns why it is refused, else None."""
        try:
            with self._connection.transaction(force_rollback=True):
                self.execute(statement, rows, **parameters)
                self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except psycopg.Error as error:
            if not _is_about_values(error):
                raise
            return _refused(error)
        return None


class _Session:
    """A connection that is made when it is needed, and anew after it was lost."""

    def __init__(self, address: str, begin: LiteralString, seen: Seen | None) -> None:
        self._address = address
        self._seen = seen
        self._begin = begin
        self._writes = begin == BEGIN_WRITING
        self._connection: Connection | None = None
        self._lost_at: float | None = None
        """Since when no transaction has succeeded because there was no connection."""

    def transact(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` in a transaction; again where it was undone without a trace.

        A loss is waited for `RETRY_FOR_S` from its beginning, and not by each transaction anew; but whoever lost a
        connection tries another one. Raises `LedgerRefused` where the database refuses a row that `work` writes,
        otherwise `LedgerUnavailable`.
        """
        started_at = time.monotonic()
        pause_s = RETRY_PAUSE_S
        may_replace = self._connection is not None
        while True:
            has_begun = is_committing = False
            try:
                connection = self._connected()
                postgres_identity.begin(connection, self._begin, self._seen)
                has_begun = True
                answer = work(PostgresTransaction(connection))
                is_committing = True
                postgres_identity.commit(connection, self._seen)
            except psycopg.Error as error:
                is_lost = self._is_lost_after(error, has_begun=has_begun)
                if is_committing and is_lost:
                    raise LedgerUnavailable(
                        f"PostgreSQL: connection lost during the commit, whose outcome is unknown: {told(error)}"
                    ) from error
                if has_begun and _is_about_values(error):
                    refused = _refused(error)
                    # A trace of what caused it would hold the values.
                    raise (refused if self._writes else LedgerUnavailable(str(refused))) from None
                is_for_one_more = may_replace or not (error.sqlstate or "").startswith(_SCHEMA_CHANGED)
                may_go_again = isinstance(error, _UNDONE) or (is_lost and is_for_one_more)
                is_late = time.monotonic() > min(started_at, self._lost_at or started_at) + RETRY_FOR_S
                if not may_go_again or (is_late and not may_replace):
                    raise LedgerUnavailable(f"PostgreSQL: {told(error)}") from error
                may_replace = False
                time.sleep(random.uniform(pause_s / 4, pause_s))  # noqa: S311 (spreads rivals)
                pause_s = min(pause_s * 2, RETRY_PAUSE_MAX_S)
            except BaseException:
                self._roll_back()
                raise
            else:
                self._lost_at = None
                return answer

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self._address)
        return self._connection

    def _is_lost_after(self, error: psycopg.Error, *, has_begun: bool) -> bool:
        """Whether the connection is of no use any more after `error`, and was given up.

        A server that turned read-only, is being shut down, or has frozen may keep a connection open that serves
        nothing. So only an error that is known to be a statement's own leaves the connection, and none before a
        transaction has begun does.
        """
        if has_begun and _is_statements_own(error):
            self._roll_back()
        elif self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._connection is None and self._lost_at is None:
            self._lost_at = time.monotonic()
        return self._connection is None

    def _roll_back(self) -> None:
        """End the transaction, or the connection where that fails."""
        if self._connection is None:
            return
        try:
            self._connection.rollback()
        except psycopg.Error:
            self._connection.close()
        if self._connection.closed:
            self._connection = None

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()


class PostgresDriver:
    """The writer's connection."""

    def __init__(self, address: str, seen: Seen) -> None:
        self._session = _Session(address, BEGIN_WRITING, seen)

    def run(self, work: Callable[[Transaction], None]) -> None:
        """Run `work` in one transaction, several times if need be; raises as `Driver.run`."""
        self._session.transact(work)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


class PostgresReader:
    """A read-only connection; each read is a short transaction of its own.

    Without `seen` it reads whatever ledger lies there.
    """

    def __init__(self, address: str, seen: Seen | None = None) -> None:
        self._session = _Session(address, BEGIN_READING, seen)

    def read(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` on one snapshot; raises `LedgerUnavailable`."""
        return self._session.transact(work)

    def interrupt(self) -> None:
        """Do nothing: the server's timeout for a statement is short enough."""

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def _is_statements_own(error: psycopg.Error) -> bool:
    if error.sqlstate is None:  # psycopg's own: it lost the connection, or it could not send the statement
        return not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return _is_about_values(error) or error.sqlstate.startswith(_STATEMENT_FAILED)


def _is_about_values(error: psycopg.Error) -> bool:
    """Whether the database refuses a row for what it holds; a rule of the operator's may raise any code."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.DataError)
    if error.sqlstate.startswith(_NOT_ABOUT_VALUES):
        return False
    return error.sqlstate.startswith(_ABOUT_VALUES) or is_from_rule(error)


def _refused(error: psycopg.Error) -> LedgerRefused:
    """A refusal in our words: the server's may hold values."""
    code = error.sqlstate or type(error).__name__
    constraint = error.diag.constraint_name
    return LedgerRefused(f"PostgreSQL: {code}, constraint {constraint}" if constraint else f"PostgreSQL: {code}", code)


def _storable(value: object) -> object:
    """PostgreSQL knows neither NUL nor lone surrogates; an id with one is asked for as another that is not there."""
    if isinstance(value, str) and not value.isprintable():
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    return value
