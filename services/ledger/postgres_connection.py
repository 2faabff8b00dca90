"""Connections to PostgreSQL: the same settings whatever server, database, role, environment and pooler prescribe."""

import os
import time
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import dict_row

from services.ledger.committer import Row

CONNECT_TIMEOUT_S = 3
HELD_TIMEOUT_MS = 2_000
"""A process that stands still inside a transaction loses it, and its locks."""
LOCK_TIMEOUT_MS = 3_000
STATEMENT_TIMEOUT_MS = 4_000
"""Below the deadlines of writes and reads, so that they are answered by a cause, not by silence."""
VERSION_MIN = 13
"""The first version of PostgreSQL that has every function that we call."""
_TRANSACTION_TIMEOUT_SINCE = 17
TOO_OLD = "the server is PostgreSQL"
ANSWER_WITHIN_S = 4.5
"""The longest transaction. A server that has frozen keeps no timeout of its own; less than the deadline of a read."""

_SETTINGS: dict[LiteralString, LiteralString] = {
    "search_path": "public, pg_temp",
    "lock_timeout": f"{LOCK_TIMEOUT_MS}",
    "statement_timeout": f"{STATEMENT_TIMEOUT_MS}",
    "idle_in_transaction_session_timeout": f"{HELD_TIMEOUT_MS}",
    # Every statement finds a few rows by an index. What the planner thinks of a table that has grown since it was
    # analysed must not make it read all of it; nor a plan that was made while it was empty.
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # That a commit does not wait any more comes as a warning, and is all that the server says of it.
    "client_min_messages": "warning",
}
_IGNORED_VARIABLES = ("PGDATESTYLE", "PGTZ", "PGGEQO")
"""libpq sends them with every connection, and no address can overrule them. A pooler may refuse them."""
_LOOK = """
SELECT pg_backend_pid() AS pid, current_setting('synchronous_commit') = 'remote_apply' AS waits_for_standbys
"""
_WAITS_FOR_STANDBY = "SyncRepWaitForLSN"
"""The function in the server's source that waits for a standby, and warns where it does so no more."""

Result = TypeVar("Result")


class Connection(psycopg.Connection[Row]):
    """A connection whose transactions end in time, and have the ledger's settings.

    A pooler may give each transaction another of the server's sessions. Then every transaction brings its settings
    along, in the message that begins it, and no statement is prepared. A session of our own gets its settings once.
    """

    sound_at: float | None = None
    """When its tables were last found sound [s], for `postgres_identity`."""
    _give_up_at: float | None = None
    _settings_to_bring: LiteralString = ""
    _is_on_standby: bool = True

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """See psycopg; raises `psycopg.OperationalError` where the transaction has lasted too long."""
        if self._give_up_at is None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, max(self._give_up_at - time.monotonic(), 0.0))
        except psycopg.OperationalError as error:
            if error.sqlstate is None and time.monotonic() >= self._give_up_at:
                raise psycopg.OperationalError(f"the server has not answered for {ANSWER_WITHIN_S:g} s") from None
            raise

    def settle(self) -> None:
        """Find out whether there is a pooler between us and the server, and settle what holds for each transaction.

        Raises `psycopg.NotSupportedError` for a server that is too old.
        """
        if self.info.server_version < VERSION_MIN * 10_000:
            raise psycopg.NotSupportedError(f"{TOO_OLD} {self.info.server_version // 10_000}")
        self.add_notice_handler(self._hear)
        self._give_up_at = time.monotonic() + ANSWER_WITHIN_S
        found = self.execute(_LOOK).fetchone()
        assert found is not None  # noqa: S101 (for the type checker: a query without a table has one row)
        # A 202 promises that the request is on disk; `remote_apply` promises more.
        settings = _SETTINGS if found["waits_for_standbys"] else {**_SETTINGS, "synchronous_commit": "on"}
        if self.info.server_version >= _TRANSACTION_TIMEOUT_SINCE * 10_000:
            settings = {**settings, "transaction_timeout": "0"}
        if found["pid"] == self.info.backend_pid:
            self.execute("; ".join(f"SET {name} = {value}" for name, value in settings.items()))
        else:
            self.prepare_threshold = None
            self._settings_to_bring = "".join(f"; SET LOCAL {name} = {value}" for name, value in settings.items())
        self._give_up_at = None

    def begin(self, how: LiteralString, look: LiteralString = "") -> Row | None:
        """Begin a transaction, which has `ANSWER_WITHIN_S` to end; the row that the query `look` finds in it."""
        self._give_up_at = time.monotonic() + ANSWER_WITHIN_S
        # In one message, and so not prepared: that takes one command at a time.
        cursor = self.execute(how + self._settings_to_bring + (f"; {look}" if look else ""), prepare=False)
        while cursor.nextset():
            pass
        return cursor.fetchone() if look else None

    def complete(self, how: LiteralString = "COMMIT") -> Row | None:
        """Commit, and return the row that a query before it finds.

        Raises `psycopg.Error`, also where the server was told not to wait for its standby: it says that it has
        committed, but the row may be lost with it.
        """
        self._is_on_standby = True
        cursor = self.execute(how, prepare=False)
        if not self._is_on_standby:
            raise psycopg.OperationalError("the wait for the standby was ended by hand")
        return cursor.fetchone() if cursor.description else None

    def _hear(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.source_function == _WAITS_FOR_STANDBY:
            self._is_on_standby = False


def ignore_variables() -> None:
    """Take out of this process's environment what libpq would send to the server.

    Call it before other threads connect: the environment of a process must not change while one of them reads it.
    """
    for name in _IGNORED_VARIABLES:
        os.environ.pop(name, None)


def connect(address: str) -> Connection:
    """A connection as the ledger needs it; raises `psycopg.Error`."""
    connection = Connection.connect(conninfo(address), autocommit=True, row_factory=dict_row)
    try:
        connection.settle()
    except BaseException:
        connection.close()
        raise
    return connection


def conninfo(address: str) -> str:
    """The address with what we add to it; raises `psycopg.Error` where libpq cannot read it.

    What the address says holds. Where it says nothing, variables of libpq's hold that tell where the server is and who
    asks (PGHOST, PGPASSFILE, PGSERVICE, PGSSLMODE …), but none that would change what our statements mean.
    """
    given = psycopg.conninfo.conninfo_to_dict(address)
    settings: dict[str, Any] = {
        "application_name": "evenload",
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": STATEMENT_TIMEOUT_MS,
        "options": "",
        # The ledger is written: of several servers, and of several addresses of one name, only the primary will do.
        "target_session_attrs": "primary",
    }
    if given.get("host"):
        settings["hostaddr"] = ""  # PGHOSTADDR would send us elsewhere
    return psycopg.conninfo.make_conninfo("", **{**settings, **given, "client_encoding": "UTF8"})
