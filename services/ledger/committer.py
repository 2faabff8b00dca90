"""Group commit: operations of many tasks become one transaction, one statement per kind.

Nothing is delayed to make a group: a transaction takes whatever has gathered while the one before it ran.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from services.errors import LedgerUnavailable
from services.logs import get_logger

log = get_logger(__name__)

Answer = TypeVar("Answer")
Row = dict[str, Any]
GROUP_MAX_ROWS = 2_000


class Transaction(Protocol):
    """Statements inside one transaction."""

    def execute(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> list[Row]:
        """Run one statement, `rows` as its one JSON parameter, and return what it returns."""


class Driver(Protocol):
    """A database connection of one thread."""

    def run(self, work: Callable[[Transaction], None]) -> None:
        """Run `work` in one transaction and commit; it may be run again where the database undid it.

        Raises `LedgerUnavailable`: nothing was written, unless the connection was lost during the commit, which the
        text says then.
        """

    def close(self) -> None:
        """Give the connection back."""


class Reader(Protocol):
    """A database connection of one thread that changes nothing."""

    def read(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` on one snapshot; raises `LedgerUnavailable`."""

    def close(self) -> None:
        """Give the connection back."""


@dataclass(frozen=True)
class Operation:
    """A kind of write: how it is done for many rows at once, and which column tells the rows apart."""

    name: str
    key: str
    apply: Callable[[Transaction, list[Row]], list[Row]]


@dataclass(eq=False)
class _Submitted:
    operation: Operation
    rows: list[Row]
    keys: frozenset[Hashable]
    answer: asyncio.Future[list[Row]]
    abandoned: bool = False
    """Nobody waits any more: it must not be written behind their back."""
    taken: bool = False
    """It stands in a transaction that has begun."""
    answered: list[Row] = field(default_factory=list)


class Committer:
    """One writer thread per process; `submit` from the event loop that made it."""

    def __init__(
        self,
        open_driver: Callable[[], Driver],
        *,
        deadline_s: float = 5.0,
        observe_commit_s: Callable[[float], object] = lambda _seconds: None,
    ) -> None:
        self._open_driver = open_driver
        self._deadline_s = deadline_s
        self._observe_commit_s = observe_commit_s
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Submitted] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self.fault: str | None = None
        """Why writing failed last; None since it went well."""
        # A thread stuck behind another process's lock must not keep this process from ending.
        self._thread = threading.Thread(target=self._write, name="ledger-writer", daemon=True)
        self._thread.start()

    async def submit(self, operation: Operation, rows: list[Row]) -> list[Row]:
        """Write `rows` in the next transaction; returns the result rows whose key is among theirs.

        A key that another operation of the same kind already brings into a transaction waits for the next one,
        so a compare-and-set never succeeds twice. Raises `LedgerUnavailable`: what had not begun by the deadline is
        never written; what had is waited for as long again, and unknown after that.
        """
        if not rows:
            return []
        submitted = _Submitted(
            operation, rows, frozenset(row[operation.key] for row in rows), self._loop.create_future()
        )
        with self._wake:
            if self._closing:
                raise LedgerUnavailable("the ledger is closed")
            self._pending.append(submitted)
            self._wake.notify()
        try:
            done, _ = await asyncio.wait({submitted.answer}, timeout=self._deadline_s)
            if not done and self._abandon(submitted):
                raise self._failed(f"{operation.name} could not begin within {self._deadline_s:g} s")
            done, _ = await asyncio.wait({submitted.answer}, timeout=self._deadline_s)
            if not done:
                raise self._failed(f"{operation.name} began, and its outcome is unknown")
            return submitted.answer.result()
        finally:
            self._abandon(submitted)
            submitted.answer.cancel()

    def _failed(self, cause: str) -> LedgerUnavailable:
        self.fault = cause
        return LedgerUnavailable(cause)

    def _abandon(self, submitted: _Submitted) -> bool:
        """Take an operation back; False where its transaction has begun."""
        with self._wake:
            submitted.abandoned = not submitted.taken
            return submitted.abandoned

    async def close(self) -> None:
        """Write what is pending, then close the connection."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join, self._deadline_s)

    def _write(self) -> None:
        driver: Driver | None = None
        while group := self._next_group():
            started = time.perf_counter()
            try:
                driver = driver or self._open_driver()
                driver.run(partial(self._apply, group))
            except LedgerUnavailable as error:
                self.fault = str(error)
                self._tell(group, error)
            except Exception as error:  # whatever the driver raised, those who wait must hear of it
                log.error("ledger_write_failed", exc_info=error)
                self._tell(group, self._failed(f"writing failed: {error!r}"))
            else:
                self.fault = None
                self._observe_commit_s(time.perf_counter() - started)
                self._tell(group, None)
        if driver is not None:
            driver.close()

    def _next_group(self) -> list[_Submitted]:
        """Wait for work; the operations of one transaction, with no key twice in a kind; empty when closing."""
        with self._wake:
            while True:
                group: list[_Submitted] = []
                held_over: list[_Submitted] = []
                taken: dict[str, set[Hashable]] = {}
                count = 0
                while self._pending and count < GROUP_MAX_ROWS:
                    one = self._pending.popleft()
                    if one.abandoned:
                        continue
                    keys = taken.setdefault(one.operation.name, set())
                    if keys & one.keys:
                        held_over.append(one)
                        continue
                    keys |= one.keys
                    count += len(one.rows)
                    group.append(one)
                self._pending.extendleft(reversed(held_over))
                if group or self._closing:
                    return group
                self._wake.wait()

    def _apply(self, group: list[_Submitted], transaction: Transaction) -> None:
        """Write what is still wanted now that the transaction has begun: it may have waited for its lock."""
        by_kind: dict[str, list[_Submitted]] = {}
        with self._wake:
            for one in group:
                one.taken = not one.abandoned
                one.answered = []
                if one.taken:
                    by_kind.setdefault(one.operation.name, []).append(one)
        for same_kind in by_kind.values():
            operation = same_kind[0].operation
            owner = {key: one for one in same_kind for key in one.keys}
            for row in operation.apply(transaction, [row for one in same_kind for row in one.rows]):
                owner[row[operation.key]].answered.append(row)

    def _tell(self, group: list[_Submitted], error: Exception | None) -> None:
        def answer() -> None:
            for one in group:
                if one.answer.done():
                    continue
                if error is None:
                    one.answer.set_result(one.answered)
                else:
                    one.answer.set_exception(error)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(answer)
