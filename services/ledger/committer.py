"""Group commit: operations of many tasks become one transaction, one statement per kind.

Nothing is delayed to make a group: a transaction takes whatever has gathered while the one before it ran. Where the
database refuses one row of a group, the group is halved until only that row fails.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from services.errors import LedgerRefused, LedgerUnavailable
from services.logs import get_logger

log = get_logger(__name__)

Answer = TypeVar("Answer")
Row = dict[str, Any]
GROUP_MAX_ROWS = 2_000
TOLD_AGAIN_S = 60.0
HALVE_FOR_S = 2.0
"""So long the row that is refused is looked for; a database that refuses every row must not hold up everybody."""


class Transaction(Protocol):
    """Statements inside one transaction."""

    def execute(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> list[Row]:
        """Run one statement, `rows` as its one JSON parameter, and return what it returns."""


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

    def close(self) -> None:
        """Give the connection back."""


@dataclass(frozen=True)
class Operation:
    """A kind of write: how it is done for many rows at once, and which column tells the rows apart."""

    name: str
    key: str
    apply: Callable[[Transaction, list[Row]], list[Row]]
    tells_refused: bool = False
    """Whether a row that the database refuses is answered by its key and, as `refused`, the database's code."""


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
    refused: dict[Hashable, LedgerRefused] = field(default_factory=dict)
    """Why the database refuses rows, by their key."""
    error: LedgerUnavailable | None = None

    def outcome(self) -> list[Row] | LedgerUnavailable:
        """The answer. Of several rows, those that are refused are missing from it, or told in it."""
        if self.error is not None:
            return self.error
        if len(self.refused) == len(self.keys):
            return next(iter(self.refused.values()))
        if not self.operation.tells_refused:
            return self.answered
        return self.answered + [{self.operation.key: key, "refused": one.code} for key, one in self.refused.items()]


@dataclass(eq=False)
class _Part:
    """Rows of an operation that stand in one transaction: all of them, or fewer while a refused row is looked for."""

    of: _Submitted
    rows: list[Row]
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
        self._told: dict[tuple[str, Hashable], float] = {}
        """When the refusal of a row was told last, by operation and key."""
        self.fault: str | None = None
        """Why writing failed last; None since it went well."""
        # A thread stuck behind another process's lock must not keep this process from ending.
        self._thread = threading.Thread(target=self._write, name="ledger-writer", daemon=True)
        self._thread.start()

    async def submit(self, operation: Operation, rows: list[Row]) -> list[Row]:
        """Write `rows` in the next transaction; returns the result rows whose key is among theirs.

        A key that another operation of the same kind already brings into a transaction waits for the next one,
        so a compare-and-set never succeeds twice. Rows that the database refuses are missing from the answer, unless
        the operation tells them. Raises `LedgerRefused` where it refuses all of `rows`, and `LedgerUnavailable`: what
        had not begun by the deadline is never written; what had is waited for as long again, and unknown after that.
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
            try:
                driver = driver or self._open_driver()
            except Exception as error:
                self._fail(group, error if isinstance(error, LedgerUnavailable) else LedgerUnavailable(_told(error)))
            else:
                self._commit(driver, [_Part(one, one.rows) for one in group], time.monotonic() + HALVE_FOR_S)
            self._tell(group)
        if driver is not None:
            driver.close()

    def _commit(self, driver: Driver, parts: list[_Part], give_up_at: float) -> None:
        """Commit all of `parts`; where one row is refused, commit the others."""
        started = time.perf_counter()
        try:
            driver.run(partial(self._apply, parts))
        except LedgerRefused as error:
            self._halve(driver, parts, give_up_at, error)
        except LedgerUnavailable as error:
            self._fail([part.of for part in parts], error)
        except Exception as error:  # whatever the driver raised, those who wait must hear of it
            self._halve(driver, parts, give_up_at, error)
        else:
            self.fault = None
            self._observe_commit_s(time.perf_counter() - started)
            for part in parts:
                part.of.answered += part.answered

    def _halve(self, driver: Driver, parts: list[_Part], give_up_at: float, error: Exception) -> None:
        """Commit each half of `parts` by itself; a single row is to blame for `error`."""
        if len(parts) == 1 and len(parts[0].rows) == 1:
            self._blame(parts[0], error)
        elif time.monotonic() > give_up_at:
            self._fail([part.of for part in parts], LedgerUnavailable(f"another row was refused: {_told(error)}"))
        else:
            for half in _halves(parts):
                self._commit(driver, half, give_up_at)

    def _blame(self, part: _Part, error: Exception) -> None:
        operation, [row] = part.of.operation, part.rows
        if isinstance(error, LedgerRefused):
            key = row[operation.key]
            part.of.refused[key] = error
            if self._is_news((operation.name, key)):
                log.error("row_refused", operation=operation.name, id=str(key), code=error.code, cause=str(error))
        else:
            log.error("ledger_write_failed", operation=operation.name, exc_info=error)
            part.of.error = self._failed(f"writing failed: {_told(error)}")

    def _is_news(self, refused: tuple[str, Hashable]) -> bool:
        """Whether a refusal has not been told lately: what loops would tell it several times a second."""
        now = time.monotonic()
        self._told = {one: at for one, at in self._told.items() if now - at < TOLD_AGAIN_S}
        is_news = refused not in self._told
        if is_news:
            self._told[refused] = now
        return is_news

    def _fail(self, group: Iterable[_Submitted], error: LedgerUnavailable) -> None:
        self.fault = str(error)
        for one in group:
            one.error = error

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

    def _apply(self, parts: list[_Part], transaction: Transaction) -> None:
        """Write what is still wanted now that the transaction has begun: it may have waited for its lock."""
        by_kind: dict[str, list[_Part]] = {}
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

    def _tell(self, group: list[_Submitted]) -> None:
        def answer() -> None:
            for one in group:
                if one.answer.done():
                    continue
                match one.outcome():
                    case LedgerUnavailable() as error:
                        one.answer.set_exception(error)
                    case rows:
                        one.answer.set_result(rows)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(answer)


def _halves(parts: list[_Part]) -> tuple[list[_Part], list[_Part]]:
    if len(parts) > 1:
        return parts[: len(parts) // 2], parts[len(parts) // 2 :]
    [one] = parts
    middle = len(one.rows) // 2
    return [_Part(one.of, one.rows[:middle])], [_Part(one.of, one.rows[middle:])]


def _told(error: Exception) -> str:
    """What may be told of an error: never the values that it is about."""
    return str(error) if isinstance(error, LedgerRefused) else type(error).__name__
