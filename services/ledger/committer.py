"""Group commit: operations of many tasks become one transaction, one statement per kind.

Nothing is delayed to make a group: a transaction takes whatever has gathered while the one before it ran.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from services.errors import LedgerRefused, LedgerUnavailable
from services.ledger.halving import Halving, Part, Submitted
from services.ledger.sparing import Sparing

Answer = TypeVar("Answer")
Row = dict[str, Any]
GROUP_MAX_ROWS = 2_000


class Transaction(Protocol):
    """Statements inside one transaction."""

    def execute(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> list[Row]:
        """Run one statement, `rows` as its one JSON parameter, and return what it returns."""

    def refusal(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> LedgerRefused | None:
        """Why the database refuses this statement, None where it does not. Whatever the statement does is undone."""


class Driver(Protocol):
    """A database connection of one thread."""

    def run(self, work: Callable[[Transaction], None]) -> None:
        """Run `work` in one transaction and commit; it may be run again where the database undid it.

        Raises `LedgerRefused` where the database refuses a row, otherwise `LedgerUnavailable`: nothing was written,
        unless the connection was lost during the commit, which the text says then.
        """

    def close(self) -> None:
        """Give the connection back."""


class Reader(Protocol):
    """A database connection of one thread that changes nothing."""

    def read(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` on one snapshot; raises `LedgerUnavailable`."""

    def interrupt(self) -> None:
        """Let the statement fail that runs in another thread, unless the database ends it in time by itself."""

    def close(self) -> None:
        """Give the connection back."""


@dataclass(frozen=True)
class Operation:
    """A kind of write: how it is done for many rows at once, and which column tells the rows apart."""

    name: str
    key: str
    apply: Callable[[Transaction, list[Row]], list[Row]]
    tells_refused: bool = False
    """Whether a row that is missing from the answer is told by its key and why.

    `refused` is then the database's code, and `unconfirmed` the cause why the row is not known to be written.
    """
    may_split: bool = True
    """Whether its rows may be written in several transactions, where the database refuses one of them."""
    spares: bool = False
    """Whether it changes requests beside its rows. Where the database refuses one of them, it changes the others."""


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
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Submitted] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._closed = asyncio.Event()
        self._halving = Halving(self._apply, observe_commit_s)
        # A thread stuck behind another process's lock must not keep this process from ending.
        threading.Thread(target=self._write, name="ledger-writer", daemon=True).start()

    @property
    def fault(self) -> str | None:
        """Why writing failed last; None since it went well."""
        return self._halving.fault

    async def submit(self, operation: Operation, rows: list[Row]) -> list[Row]:
        """Write `rows` in the next transaction; returns the result rows whose key is among theirs.

        A key that another operation of the same kind already brings into a transaction waits for the next one,
        so a compare-and-set never succeeds twice. Rows that the database refuses are missing from the answer, unless
        the operation tells them. Raises `LedgerRefused` where it refuses all of `rows`, and `LedgerUnavailable`: what
        had not begun by the deadline is never written; what had is waited for as long again, and unknown after that.
        An operation that tells its refusals does not raise as long as one of its rows is answered or refused.
        """
        if not rows:
            return []
        submitted = Submitted(
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
        self._halving.fault = cause
        return LedgerUnavailable(cause)

    def _abandon(self, submitted: Submitted) -> bool:
        """Take an operation back; False where its transaction has begun."""
        with self._wake:
            submitted.abandoned = not submitted.taken
            return submitted.abandoned

    async def close(self) -> None:
        """Write what is pending, and return once the connection is closed; a database that is silent delays that."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await self._closed.wait()

    def _write(self) -> None:
        try:
            self._write_groups()
        finally:
            self._call(self._closed.set)

    def _write_groups(self) -> None:
        driver: Driver | None = None
        while group := self._next_group():
            try:
                driver = driver or self._open_driver()
            except Exception as error:  # those who wait must hear of it
                told = error if isinstance(error, LedgerUnavailable) else LedgerUnavailable(type(error).__name__)
                self._halving.fail([Part(one, one.rows) for one in group], told)
            else:
                self._halving.commit(driver, group)
            self._tell(group)
        if driver is not None:
            driver.close()

    def _next_group(self) -> list[Submitted]:
        """Wait for work; the operations of one transaction, with no key twice in a kind; empty when closing."""
        with self._wake:
            while True:
                group: list[Submitted] = []
                held_over: list[Submitted] = []
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

    def _apply(self, parts: list[Part], transaction: Transaction) -> None:
        """Write what is still wanted now that the transaction has begun: it may have waited for its lock."""
        by_kind: dict[str, list[Part]] = {}
        sparing: Sparing | None = None
        if parts[0].findings is not None:  # only parts of its operation, which spare as well, stand beside it
            transaction = sparing = Sparing(transaction, parts[0].findings)
            parts[0].spared = sparing.refused
        with self._wake:
            for part in parts:
                part.of.taken = not part.of.abandoned
                part.answered = []
                if part.of.taken:
                    by_kind.setdefault(part.of.operation.name, []).append(part)
        for same_kind in by_kind.values():
            operation = same_kind[0].of.operation
            owner = {row[operation.key]: part for part in same_kind for row in part.rows}
            for row in operation.apply(transaction, [row for part in same_kind for row in part.rows]):
                owner[row[operation.key]].answered.append(row)
        if sparing is not None:
            for part in parts:
                part.has_left_out = bool(sparing.left_out)

    def _tell(self, group: list[Submitted]) -> None:
        def answer() -> None:
            for one in group:
                if one.answer.done():
                    continue
                match one.outcome():
                    case LedgerUnavailable() as error:
                        one.answer.set_exception(error)
                    case rows:
                        one.answer.set_result(rows)

        self._call(answer)

    def _call(self, callback: Callable[[], None]) -> None:
        """Let the event loop call something, unless it is over."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)
