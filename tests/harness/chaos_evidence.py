"""Reads what a run left on disk, for the checker: the clients' log, the witnesses' files and the ledger itself."""

import collections
import contextlib
import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from harness.chaos_checker import Evidence, Holder, Piece, Row, Site, Start, Told, Withdrawn

from services.ledger.states import TERMINAL, Status, Transition
from substations.heartbeat import GRANT_BEATS

ROWS = """
SELECT id, status, energy_requested_j, energy_delivered_j, power_max_w, interruptions, idempotency_key FROM request
"""
HISTORIES = "SELECT request_id, at_ms, status, substation, attempt, epoch, reason FROM transition ORDER BY number"
OPEN = f"SELECT count(*) FROM request WHERE status NOT IN ({', '.join(repr(str(one)) for one in sorted(TERMINAL))})"


class LedgerReader:
    """Reads a SQLite ledger without the product's own driver."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = f"sqlite:///{path}"

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)) as database:
            return database.execute(statement).fetchall()

    def open_requests(self) -> int:
        """How many have not ended yet."""
        return self._rows(OPEN)[0][0]

    def rows(self) -> dict[str, Row]:
        return {row[0]: Row(*row[1:]) for row in self._rows(ROWS)}

    def histories(self) -> dict[str, list[Transition]]:
        found = collections.defaultdict(list)
        for request_id, at_ms, status, substation, attempt, epoch, reason in self._rows(HISTORIES):
            found[request_id].append(Transition(at_ms, Status(status), substation, attempt, epoch, reason))
        return found


class PostgresLedgerReader(LedgerReader):
    """Reads a ledger on PostgreSQL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as database:
            return database.execute(statement).fetchall()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a log; a writer that was killed may have left half a line at the end, and only there."""
    text = path.read_text(encoding="utf-8")
    whole = text.split("\n")[:-1]  # what follows the last line feed is half a line, or nothing
    return (json.loads(line) for line in whole)


def witnessed(folder: Path) -> tuple[list[Start], list[Piece]]:
    """What all witness files of a folder tell."""
    starts, pieces = [], []
    for path in sorted(folder.glob("*.jsonl")):
        writer = path.stem.rsplit("-", maxsplit=1)[1]
        for line in lines(path):
            holder = Holder(line["substation"], line["epoch"], writer)
            whose = (line["request_id"], line["attempt"], holder)
            if line["event"] == "start":
                starts.append(Start(*whose, line["at_s"]))
            elif line["event"] == "energy":
                pieces.append(Piece(*whose, line["from_s"], line["to_s"], line["energy_j"]))
    return starts, pieces


def answered(path: Path) -> tuple[list[Told], list[Withdrawn]]:
    """What the clients were told."""
    told, withdrawn = [], []
    for line in lines(path):
        event = line.pop("event")
        if event == "told":
            told.append(Told(**line))
        elif event == "withdrawn":
            withdrawn.append(Withdrawn(**line))
    return told, withdrawn


def evidence(
    *,
    clients: Path,
    witnesses: Path,
    ledger: LedgerReader,
    sites: dict[str, Site],
    speed: float,
    heartbeat_s: float,
    wall_offset_s: float,
) -> Evidence:
    """Everything that a run left."""
    told, withdrawn = answered(clients)
    starts, pieces = witnessed(witnesses)
    grant_s = math.ceil(GRANT_BEATS * heartbeat_s * speed)
    return Evidence(
        told, withdrawn, starts, pieces, ledger.rows(), ledger.histories(), sites, speed, grant_s, wall_offset_s
    )
