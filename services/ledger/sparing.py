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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.errors import LedgerRefused
    from services.ledger.committer import Row, Transaction

SEARCH_FOR_S = 1.0
"""So long refused requests are looked for in a transaction, while all other writes wait. What has not been tried by
then is left to the next transaction."""
_BUT_THOSE = "AND request.id NOT IN (SELECT id FROM {left out: id} AS spared)"


class Sparing:
    """A `Transaction` in which refused requests are looked for, by halves, and left out.

    A request that one statement has left out is left out of all later ones: what cannot be told as delivered must not
    be settled.
    """

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self._give_up_at = time.monotonic() + SEARCH_FOR_S
        self._left_out: set[str] = set()
        self.refused: dict[str, LedgerRefused] = {}
        """The requests that were found to be refused, and why."""

    def execute(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> list[Row]:
        """Run one statement for all requests but the refused ones; see `Transaction.execute`."""
        if SPARED not in statement:
            return self._transaction.execute(statement, rows, **parameters)
        sparing = statement.replace(SPARED, _BUT_THOSE)
        if self._refusal(sparing, rows, self._left_out):
            self._search(sparing, rows)
        return self._transaction.execute(sparing, rows, left_out=_json(self._left_out), **parameters)

    def refusal(self, statement: str, rows: Sequence[Sequence[Any]] = (), **parameters: Any) -> LedgerRefused | None:
        """See `Transaction.refusal`."""
        return self._transaction.refusal(statement, rows, **parameters)

    def _refusal(self, statement: str, rows: Sequence[Sequence[Any]], left_out: set[str]) -> LedgerRefused | None:
        return self._transaction.refusal(statement, rows, left_out=_json(left_out))

    def _search(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Leave out each request without which the statement would pass; it is never tried for one that is left out."""
        if "{rows: id," in statement:
            asked = [str(row[0]) for row in rows]
        else:
            asked = [str(one["id"]) for one in self._transaction.execute(OPEN_AT, [row[:1] for row in rows])]
        everybody = set(asked)
        waiting = [sorted(everybody - self._left_out)]
        while waiting and (some := waiting.pop()):
            error = self._refusal(statement, rows, self._left_out | everybody.difference(some))
            if error is None:
                continue
            if len(some) == 1:
                self.refused[some[0]] = error
                self._left_out.add(some[0])
            elif time.monotonic() > self._give_up_at:
                self._left_out.update(some)
            else:
                waiting += [some[: len(some) // 2], some[len(some) // 2 :]]


def _json(ids: set[str]) -> str:
    return json.dumps([[one] for one in ids])
