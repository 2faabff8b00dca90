"""Commits a group of operations; where the database refuses a row, halves the group until only that row fails."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from services.errors import LedgerRefused, LedgerUnavailable
from services.ledger.sparing import Findings
from services.logs import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable, Sequence

    from services.ledger.committer import Driver, Operation, Row, Transaction

log = get_logger(__name__)

HALVE_FOR_S = 2.0
"""So long after the first refusal it is looked for; a database that refuses every row must not hold up everybody."""
TOLD_AGAIN_S = 60.0
SUSPECT_FOR_S = 60.0
"""So long a row that was refused is kept apart from the others: whoever asks for it in a loop would have it searched
for each time."""
SUSPECTS_MAX = 1_000


@dataclass(eq=False)
class Submitted:
    """An operation that somebody waits for."""

    operation: Operation
    rows: list[Row]
    keys: frozenset[Hashable]
    answer: asyncio.Future[list[Row]]
    abandoned: bool = False
    """Nobody waits any more: it must not be written behind their back."""
    taken: bool = False
    """It stands in a transaction that has begun."""
    answered: list[Row] = field(default_factory=list)
    faults: dict[Hashable, LedgerUnavailable] = field(default_factory=dict)
    """Why rows were not written, or are not known to be, by their key."""

    def outcome(self) -> list[Row] | LedgerUnavailable:
        """The answer. What was committed is answered, whatever became of the other rows.

        An operation that does not tell its refusals is answered as a whole: it raises unless all that is missing was
        refused.
        """
        refused = {key: one for key, one in self.faults.items() if isinstance(one, LedgerRefused)}
        unconfirmed = {key: one for key, one in self.faults.items() if key not in refused}
        if unconfirmed and (not self.operation.tells_refused or len(unconfirmed) == len(self.keys)):
            return next(iter(unconfirmed.values()))
        if len(refused) == len(self.keys):
            return next(iter(refused.values()))
        if not self.operation.tells_refused:
            return self.answered
        return [
            *self.answered,
            *({self.operation.key: key, "refused": one.code} for key, one in refused.items()),
            *({self.operation.key: key, "unconfirmed": str(one)} for key, one in unconfirmed.items()),
        ]


@dataclass(eq=False)
class Part:
    """Rows of an operation that stand in one transaction: all of them, or fewer while a refused row is looked for."""

    of: Submitted
    rows: list[Row]
    answered: list[Row] = field(default_factory=list)
    findings: Findings | None = None
    """What is known of the requests that the database refuses to change; None where they are not left out."""
    spared: dict[str, LedgerRefused] = field(default_factory=dict)
    """The requests that were found to be refused in the last try, and why."""
    has_left_out: bool = False
    """Whether the last try left any request out."""

    @property
    def is_sparing(self) -> bool:
        """Whether it leaves out the requests that the database refuses to change."""
        return self.findings is not None

    @property
    def can_be_halved(self) -> bool:
        """Whether a refusal may be looked for inside."""
        return len(self.rows) > 1 and self.of.operation.may_split

    @property
    def may_spare(self) -> bool:
        """Whether it may be tried once more, without the requests that the database refuses to change."""
        return self.of.operation.spares and not self.is_sparing

    def fail(self, error: LedgerUnavailable) -> None:
        """Tell each row's caller of `error`."""
        key = self.of.operation.key
        self.of.faults |= {row[key]: error for row in self.rows}


class Halving:
    """Commits the groups of one writer, and remembers what the database has refused lately."""

    def __init__(
        self, apply: Callable[[list[Part], Transaction], None], observe_commit_s: Callable[[float], object]
    ) -> None:
        self._apply = apply
        self._observe_commit_s = observe_commit_s
        self._refused_at: dict[tuple[str, Hashable], tuple[float, bool]] = {}
        """When a row was refused last, and whether it is then tried without refused requests, by operation and key; the
        oldest first."""
        self._findings: dict[str, Findings] = {}
        """By operation."""
        self._told: dict[tuple[str, str], tuple[float, int]] = {}
        """When a refusal was told last, and how often it has happened since, by operation and code."""
        self.fault: str | None = None
        """Why writing failed last; None since it went well. A row that is refused is no fault of the ledger's."""

    def commit(self, driver: Driver, group: Sequence[Submitted]) -> None:
        """Commit `group`; where one row is refused, commit the others.

        Rows that were refused lately get a transaction of their own. A row that is refused because of a request that it
        changes is tried once more without that request, and from then on at once. What a lost connection leaves is not
        tried.
        """
        waiting = deque(self._apart(group))
        give_up_at: float | None = None
        while waiting:
            parts = waiting.popleft()
            started = time.perf_counter()
            try:
                driver.run(partial(self._apply, parts))
            except Exception as error:  # whatever the driver raised, those who wait must hear of it
                if isinstance(error, LedgerUnavailable) and not isinstance(error, LedgerRefused):
                    self.fail(parts, error)
                    not_tried = LedgerUnavailable(f"not tried, because another write failed: {error}")
                    for part in (part for others in waiting for part in others):
                        part.fail(not_tried)
                    return
                now = time.monotonic()
                give_up_at = give_up_at or now + HALVE_FOR_S
                waiting.extendleft(reversed(self._smaller(parts, error, is_late=now > give_up_at)))
            else:
                self.fault = None
                self._observe_commit_s(time.perf_counter() - started)
                for part in parts:
                    part.of.answered += part.answered
                    if part.has_left_out:
                        self._keep_apart(part, is_sparing=True)
                    for request_id, refusal in part.spared.items():
                        self._tell(part.of.operation, request_id, refusal)

    def _smaller(self, parts: list[Part], error: Exception, *, is_late: bool) -> list[list[Part]]:
        """What to try next after `parts` were refused; nothing where their callers were told instead."""
        if len(parts) > 1 or parts[0].can_be_halved:
            if not is_late:
                return _halves(parts)
            may_spare = [part for part in parts if part.may_spare and isinstance(error, LedgerRefused)]
            for part in parts:
                if part not in may_spare:
                    part.fail(LedgerUnavailable(f"another row was refused: {_code(error)}"))
            return self._sparing(may_spare)
        if isinstance(error, LedgerRefused) and parts[0].may_spare:
            return self._sparing(parts)
        self._blame(parts[0], error)
        return []

    def _sparing(self, parts: Sequence[Part]) -> list[list[Part]]:
        """The same rows, without the requests that the database refuses to change: one transaction for an operation."""
        by_operation: dict[str, list[Part]] = {}
        for part in parts:
            self._keep_apart(part, is_sparing=True)
            name = part.of.operation.name
            findings = self._findings.setdefault(name, Findings(name))
            by_operation.setdefault(name, []).append(Part(part.of, part.rows, findings=findings))
        return list(by_operation.values())

    def fail(self, parts: Sequence[Part], error: LedgerUnavailable) -> None:
        """Tell everybody in `parts` that writing failed."""
        self.fault = str(error)
        for part in parts:
            part.fail(error)

    def _apart(self, group: Sequence[Submitted]) -> list[list[Part]]:
        """All rows of `group`; those that were refused lately come last, by themselves."""
        trusted: list[Part] = []
        suspects: list[Part] = []
        sparing: dict[str, list[Part]] = {}
        for one in group:
            name, key = one.operation.name, one.operation.key
            doubts = [self._doubt(name, row[key]) for row in one.rows]
            if any(doubts) and not one.operation.may_split:
                doubts = ["refused"] * len(one.rows)
            for wanted in dict.fromkeys(doubts):
                part = Part(one, [row for row, doubt in zip(one.rows, doubts, strict=True) if doubt == wanted])
                if wanted == "sparing":
                    part.findings = self._findings[name]
                    sparing.setdefault(name, []).append(part)
                else:
                    (suspects if wanted else trusted).append(part)
        return [parts for parts in (trusted, suspects, *sparing.values()) if parts]

    def _doubt(self, operation: str, key: Hashable) -> Literal["refused", "sparing"] | None:
        """How a row is tried that was refused lately; None for any other."""
        at, is_sparing = self._refused_at.get((operation, key), (None, False))
        if at is None or time.monotonic() - at >= SUSPECT_FOR_S:
            return None
        return "sparing" if is_sparing else "refused"

    def _blame(self, part: Part, error: Exception) -> None:
        """Tell the callers of the rows that the database refused, or that met a bug."""
        operation = part.of.operation
        if isinstance(error, LedgerRefused):
            part.fail(error)
            self._keep_apart(part, is_sparing=False)
            if len(part.rows) == 1:  # else it is not known which of them it is
                self._tell(operation, part.rows[0][operation.key], error)
        else:
            log.error("ledger_write_failed", operation=operation.name, exc_info=error)
            self.fail([part], LedgerUnavailable(f"writing failed: {_code(error)}"))

    def _keep_apart(self, part: Part, *, is_sparing: bool) -> None:
        """Keep refused rows apart from now on."""
        now, operation = time.monotonic(), part.of.operation
        for row in part.rows:
            self._refused_at.pop((operation.name, row[operation.key]), None)
            self._refused_at[operation.name, row[operation.key]] = now, is_sparing
        while len(self._refused_at) > SUSPECTS_MAX:
            del self._refused_at[next(iter(self._refused_at))]

    def _tell(self, operation: Operation, key: Hashable, error: LedgerRefused) -> None:
        """Tell of a refused row, but not each time: what loops would tell it several times a second."""
        now = time.monotonic()
        kind = operation.name, error.code
        told_at, since = self._told.get(kind, (now - TOLD_AGAIN_S, 0))
        times = since = since + 1
        if now - told_at >= TOLD_AGAIN_S:
            told_at, since = now, 0
            log.error(
                "row_refused",
                operation=operation.name,
                id=str(key),
                code=error.code,
                cause=str(error),
                times=times,
            )
        self._told[kind] = told_at, since


def _halves(parts: list[Part]) -> list[list[Part]]:
    if len(parts) > 1:
        return [parts[: len(parts) // 2], parts[len(parts) // 2 :]]
    [one] = parts
    middle = len(one.rows) // 2
    return [[Part(one.of, some, findings=one.findings)] for some in (one.rows[:middle], one.rows[middle:])]


def _code(error: Exception) -> str:
    """What may be told of an error: never the values that it is about."""
    return error.code if isinstance(error, LedgerRefused) else type(error).__name__
