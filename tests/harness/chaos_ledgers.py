"""Reads a run's ledger page by page, without the product's own drivers."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from harness.chaos_records import Row
from harness.full_disk import MountedDisk
from harness.postgres import Server

from services.ledger.states import TERMINAL, Status, Transition

PAGE = 500
ROWS = """
SELECT arrival, id, status, energy_requested_j, energy_delivered_j, power_max_w, interruptions, idempotency_key,
       vehicle_id
FROM request WHERE arrival > {after} ORDER BY arrival LIMIT {most}
"""
HISTORIES = """
SELECT request_id, at_ms, status, substation, attempt, epoch, reason FROM transition
WHERE request_id IN (SELECT id FROM request WHERE arrival > {after} AND arrival <= {until}) ORDER BY number
"""
OPEN = " + ".join(  # one for each state, for which there is an index
    f"(SELECT count(*) FROM request WHERE status = '{status}')" for status in Status if status not in TERMINAL
)


class Page(NamedTuple):
    """Some requests, each with its whole history."""

    rows: dict[str, Row]
    histories: dict[str, list[Transition]]


class LedgerReader:
    """A SQLite ledger."""

    kind = "sqlite"

    def __init__(self, path: Path, disk: MountedDisk | None = None) -> None:
        self.path = path
        self.disk = disk
        """The small one that it has for itself."""
        self.url = f"sqlite:///{path}"

    def _select(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(statement).fetchall()

    def open_requests(self) -> int:
        """How many have not ended yet."""
        return self._select(f"SELECT {OPEN}")[0][0]

    def pages(self, most: int = PAGE) -> Iterator[Page]:
        """All requests, at most so many at once."""
        after = 0
        while found := self._select(ROWS.format(after=after, most=most)):
            until = found[-1][0]
            rows = {row[1]: Row(*row[2:]) for row in found}
            histories: dict[str, list[Transition]] = {request_id: [] for request_id in rows}
            for request_id, at_ms, status, *rest in self._select(HISTORIES.format(after=after, until=until)):
                histories[request_id].append(Transition(at_ms, Status(status), *rest))
            yield Page(rows, histories)
            after = until


class PostgresLedgerReader(LedgerReader):
    """A ledger on PostgreSQL."""

    kind = "postgres"

    disk = None

    def __init__(self, url: str, server: Server) -> None:
        self.url = url
        self.server = server

    def _select(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as database:
            return database.execute(statement).fetchall()
