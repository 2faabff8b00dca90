"""A ledger for tests: the product's tables, statements and role classes on SQLite in memory.

A test sets its clock, decides how each call fares, and looks at its rows. The protocol's model builds its own ledger on
the same `MemoryDatabase`.
"""

import asyncio
import sqlite3
from dataclasses import replace

from harness.ledger import Ledger

from services.errors import LedgerUnavailable
from services.ledger import schema
from services.ledger.sqlite import DIALECT, SqliteTransaction

START_MS = 1_800_000_000_000
PATIENCE_S = 20.0
_DIALECT = replace(DIALECT, now_ms="test_now_ms()")


class MemoryDatabase:
    """A ledger's database; `now_ms` is its clock. Where a statement is `rewritten`, another one runs in its place."""

    def __init__(self, now_ms, rewritten=None):
        self._rewritten = rewritten or {}
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        self._database.create_function("test_now_ms", 0, now_ms)
        for statement in schema.SQLITE:
            self._database.execute(statement)

    def transaction(self):
        return _Transaction(self._database, self._rewritten)

    def commit(self, operation, rows):
        """Write an operation's rows in one transaction; returns its answer."""
        self._database.execute("BEGIN")
        try:
            answer = operation.apply(self.transaction(), rows)
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
        return answer

    def execute(self, statement, parameters=()):
        """Look at rows, or change them, behind the ledger's back; returns a cursor."""
        return self._database.execute(statement, parameters)

    def rows(self, query, *parameters):
        return self.execute(query, parameters).fetchall()

    def close(self):
        self._database.close()


class _Transaction(SqliteTransaction):
    """The driver's own transaction, on the test's clock."""

    def __init__(self, database, rewritten):
        super().__init__(database, _DIALECT)
        self._rewritten = rewritten

    def execute(self, statement, rows=(), **parameters):
        return super().execute(self._rewritten.get(statement, statement), rows, **parameters)


class HeldAnswer:
    """The answer to one call, which arrives when the test lets it go."""

    def __init__(self):
        self._is_ready = asyncio.Event()
        self._may_go = asyncio.Event()

    async def ready(self):
        """Wait until the call has been done and only its answer is missing."""
        async with asyncio.timeout(PATIENCE_S):
            await self._is_ready.wait()

    def let_go(self):
        self._may_go.set()

    async def arrive(self):
        self._is_ready.set()
        await self._may_go.wait()


class MemoryLedger(Ledger):
    """The views of a ledger, and in one object the connection below them, whose calls fare as the test wants.

    Writes are named like their `Operation`; all reads are named "read".
    """

    def __init__(self):
        super().__init__(self)
        self.now_ms = START_MS
        self.is_away = False
        """Whether no call reaches it."""
        self.refused = set()
        """The names of calls that do not reach it."""
        self.unanswered = set()
        """The names of calls that are done, and whose answers are lost."""
        self.calls = []
        """The names of all calls, in their order."""
        self._held = []
        self._database = MemoryDatabase(lambda: self.now_ms)
        self.execute, self.rows, self.close = self._database.execute, self._database.rows, self._database.close

    def hold(self, name):
        """Hold back the answer to the next call of that name."""
        answer = HeldAnswer()
        self._held.append((name, answer))
        return answer

    async def write(self, operation, rows):
        if not rows:
            return []
        return await self._call(operation.name, lambda: self._database.commit(operation, rows))

    async def read(self, work):
        return await self._call("read", lambda: work(self._database.transaction()))

    async def _call(self, name, work):
        self.calls.append(name)
        is_lost = self.is_away or name in self.refused
        await asyncio.sleep(0)  # a ledger takes its time, and others go on meanwhile
        if is_lost:
            raise LedgerUnavailable("away")
        answer = work()
        held = next((one for one in self._held if one[0] == name), None)
        if held is not None:
            self._held.remove(held)
            await held[1].arrive()
        if name in self.unanswered:
            raise LedgerUnavailable("the answer was lost")
        return answer
