"""Keeps the evidence of a run on disk, so that memory does not grow with the run; gives it back request by request."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from harness.chaos_records import Busy, GaveUp, Holder, Piece, Start, Told, Withdrawing, Withdrawn

TABLES = {
    Told: "told",
    GaveUp: "gave_up",
    Withdrawing: "withdrawing",
    Withdrawn: "withdrawn",
    Start: "start",
    Piece: "piece",
    Busy: "busy",
}
OF_REQUESTS = (Told, Withdrawing, Withdrawn, Start, Piece)
OF_KEYS = (Told, GaveUp)
BUFFERED = 1_000


HOLDER_AT = {kind: kind._fields.index("holder") for kind in TABLES if "holder" in kind._fields}
"""Where a record has its holder, whose fields are columns of their own."""


def _columns(kind: Any) -> list[str]:
    return [part for name in kind._fields for part in (Holder._fields if name == "holder" else (name,))]


def _flat(record: Any) -> Sequence[Any]:
    at = HOLDER_AT.get(type(record))
    return record if at is None else (*record[:at], *record[at], *record[at + 1 :])


def _record(kind: Any, row: Sequence[Any]) -> Any:
    at = HOLDER_AT.get(kind)
    if at is None:
        return kind(*row)
    after = at + len(Holder._fields)
    return kind(*row[:at], Holder(*row[at:after]), *row[after:])


class Store:
    """A database of its own that is worth nothing after the run, and therefore never synchronised."""

    def __init__(self, path: Path) -> None:
        # Whoever uses it does so from one thread after the other.
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN")
        for kind, table in TABLES.items():
            self._database.execute(f"CREATE TABLE {table} ({', '.join(_columns(kind))})")
        self._database.execute("CREATE TABLE known (request_id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._buffers: dict[Any, list[Sequence[Any]]] = {kind: [] for kind in TABLES}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._database.close()

    @property
    def held(self) -> int:
        """How many records are in memory."""
        return sum(map(len, self._buffers.values()))

    def add(self, record: NamedTuple) -> None:
        """Keep a record."""
        buffer = self._buffers[type(record)]
        buffer.append(_flat(record))
        if len(buffer) >= BUFFERED:
            self._write(type(record))

    def finish(self) -> None:
        """All evidence is here: from now on it is read."""
        for kind, table in TABLES.items():
            self._write(kind)
            if kind in OF_REQUESTS:
                self._database.execute(f"CREATE INDEX {table}_of ON {table} (request_id)")
            if kind in OF_KEYS:
                self._database.execute(f"CREATE INDEX {table}_under ON {table} (key)")
        self._database.execute("COMMIT")  # for whoever keeps the file and wants to look

    def of_requests(self, request_ids: Sequence[str]) -> dict[Any, list[Any]]:
        """What is known of these requests by the kind of record; the ledger knows them."""
        wanted = json.dumps(request_ids)
        self._database.execute("INSERT OR IGNORE INTO known SELECT value FROM json_each(?)", [wanted])
        return {kind: self._select(kind, "WHERE request_id IN (SELECT value FROM json_each(?))", wanted)
                for kind in OF_REQUESTS}  # fmt: skip

    def of_keys(self, keys: Sequence[str]) -> tuple[dict[str, str], set[str]]:
        """The id that was told under each of these keys, and those keys whose client stopped asking."""
        wanted = json.dumps(keys)
        told, given_up = (
            self._select(kind, "WHERE key IN (SELECT value FROM json_each(?))", wanted) for kind in OF_KEYS
        )
        return {one.key: one.request_id for one in told}, {one.key for one in given_up}

    def strangers(self, most: int) -> Iterator[list[str]]:
        """The ids of requests that the ledger does not know, at most so many at once."""
        every = " UNION ".join(f"SELECT request_id FROM {TABLES[kind]}" for kind in OF_REQUESTS)
        cursor = self._database.execute(f"{every} EXCEPT SELECT request_id FROM known")
        while rows := cursor.fetchmany(most):
            yield [row[0] for row in rows]

    def keys_of_several(self) -> Iterator[tuple[str, str]]:
        """Each key under which clients were told of several requests, and their ids."""
        yield from self._database.execute(
            "SELECT key, group_concat(DISTINCT request_id) FROM told GROUP BY key HAVING count(DISTINCT request_id) > 1"
        )

    def busy(self) -> Iterator[Busy]:
        """All times in which somebody charged, substation by substation in their order."""
        rows = self._database.execute("SELECT * FROM busy ORDER BY substation, from_s, to_s")
        return (_record(Busy, row) for row in rows)

    def count(self, kind: Any) -> int:
        return self._database.execute(f"SELECT count(*) FROM {TABLES[kind]}").fetchone()[0]

    def _select(self, kind: Any, where: str, *values: Any) -> list[Any]:
        rows = self._database.execute(f"SELECT * FROM {TABLES[kind]} {where} ORDER BY rowid", values)
        return [_record(kind, row) for row in rows]

    def _write(self, kind: Any) -> None:
        buffer, self._buffers[kind] = self._buffers[kind], []
        holes = ", ".join("?" * len(_columns(kind)))
        self._database.executemany(f"INSERT INTO {TABLES[kind]} VALUES ({holes})", buffer)
