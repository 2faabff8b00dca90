"""A transaction that changes many requests at once, except those whose change the database refuses.

A statement with the hole `{spared}` finds its requests itself, so that one of them that may not be changed would keep
all others from being changed. Such a request stays as it is.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from services.ledger.dialect import SPARED
from services.ledger.lease_statements import OPEN_AT
from services.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.errors import LedgerRefused
    from services.ledger.committer import Row, Transaction

log = get_logger(__name__)

SEARCH_FOR_S = 1.0
"""A transaction looks for refused requests this long, from its first search on; all other writes wait meanwhile. The
next transaction goes on where it ended."""
REFUSED_FOR_S = 60.0
"""A refused request is left out this long without a trial. Then it is tried again: the rule may be gone."""
REFUSED_MAX = 10_000
UNSEARCHED_MAX = 100
_BUT_THOSE = "AND request.id NOT IN (SELECT id FROM {left out: id} AS spared)"


class Findings:
    """What the searches of one operation have found, so that each goes on where the last one ended."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self._refused_at: dict[str, float] = {}
        """When a request was refused last; the oldest first."""
        self._unsearched: list[set[str]] = []
        """Sets of requests that a search gave up on. No request is in two of them, or in `_refused_at` as well."""

    def refused_lately(self) -> set[str]:
        """The requests that are left out without a trial."""
        now = time.monotonic()
        return {one for one, at in self._refused_at.items() if now - at < REFUSED_FOR_S}

    def note_refused(self, request_id: str) -> None:
        """Leave this request out from now on."""
        self._refused_at.pop(request_id, None)
        self._refused_at[request_id] = time.monotonic()
        while len(self._refused_at) > REFUSED_MAX:
            del self._refused_at[next(iter(self._refused_at))]

    def note_unsearched(self, request_ids: Sequence[str]) -> None:
        """Let the next search begin with these."""
        for one in request_ids:
            self._refused_at.pop(one, None)
        self._unsearched.append(set(request_ids))
        del self._unsearched[:-UNSEARCHED_MAX]

    def lists_of(self, asked: set[str]) -> list[list[str]]:
        """Divide the requests to be searched: those that no search has doubted, and each set that one has."""
        doubted = [asked & self._refused_at.keys(), *(asked & some for some in self._unsearched)]
        self._unsearched = [others for some in self._unsearched if (others := some - asked)]
        return [sorted(some) for some in (*doubted, asked.difference(*doubted)) if some]


class Sparing:
    """A `Transaction` in which refused requests are looked for, by halves, and left out.

    A request that one statement has left out is left out of all later ones: what cannot be told as delivered must not
    be settled.
    """

    def __init__(self, transaction: Transaction, findings: Findings) -> None:
        self._transaction = transaction
        self._findings = findings
        self._give_up_at: float | None = None
        self.left_out = findings.refused_lately()
        """The requests that stay as they are: the refused ones, and those that no search has reached."""
        self.refused: dict[str, LedgerRefused] = {}
        """The requests that were found to be refused in this transaction, and why."""

    def execute(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> list[Row]:
        """Run one statement for all requests but the refused ones; see `Transaction.execute`."""
        if SPARED not in statement:
            return self._transaction.execute(statement, rows, **parameters)
        sparing = statement.replace(SPARED, _BUT_THOSE)
        if self._refusal(sparing, rows, self.left_out):
            self._search(sparing, rows)
        return self._transaction.execute(sparing, rows, left_out=_json(self.left_out), **parameters)

    def refusal(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> LedgerRefused | None:
        """Try the statement with no request left out; returns why it is refused, else None."""
        return self._transaction.refusal(statement, rows, **parameters)

    def _refusal(self, statement: str, rows: Sequence[Sequence[Any]], left_out: set[str]) -> LedgerRefused | None:
        return self._transaction.refusal(statement, rows, left_out=_json(left_out))

    def _search(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Find by halves the requests that the statement is refused for, and leave them out.

        Each trial covers only requests that are not left out yet. When the time is up, a list that is refused is left
        out as a whole; after as long again a list is left out without a trial.
        """
        if "{rows: id," in statement:
            asked = [str(row[0]) for row in rows]
        else:
            asked = [str(one["id"]) for one in self._transaction.execute(OPEN_AT, [row[:1] for row in rows])]
        everybody = set(asked)
        waiting = self._findings.lists_of(everybody - self.left_out)
        give_up_at = self._give_up_at = self._give_up_at or time.monotonic() + SEARCH_FOR_S
        unsearched = 0
        while waiting:
            some = waiting.pop()
            late_s = time.monotonic() - give_up_at
            error = None
            if late_s <= SEARCH_FOR_S:
                error = self._refusal(statement, rows, self.left_out | everybody.difference(some))
                if error is None:
                    continue
            if error is not None and len(some) == 1:
                self.refused[some[0]] = error
                self._findings.note_refused(some[0])
                self.left_out.add(some[0])
            elif late_s > 0:
                self._findings.note_unsearched(some)
                self.left_out.update(some)
                unsearched += len(some)
            else:
                waiting += [some[: len(some) // 2], some[len(some) // 2 :]]
        if unsearched:
            log.warning(
                "refused_requests_not_all_found",
                operation=self._findings.operation,
                left_to_the_next_try=unsearched,
                refused=len(self.refused),
            )


def _json(ids: set[str]) -> str:
    return json.dumps([[one] for one in ids])
