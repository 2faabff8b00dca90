"""Every statement finds its rows by an index."""

import contextlib
import re
import sqlite3

import pytest

from services.ledger import dialect, lease_statements, statements
from services.ledger.sqlite import DIALECT

ALL_STATEMENTS = {
    name: text
    for name, text in {**vars(statements), **vars(lease_statements)}.items()
    if name.isupper() and isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", text)
}
ON_REQUESTS = sorted(
    name for name, text in ALL_STATEMENTS.items() if re.search(r"\b(FROM|JOIN|UPDATE|INTO) request\b", text)
)


@pytest.fixture
def where(tmp_path):
    return tmp_path / "ledger.sqlite"


PARTIAL_INDEXES = "waiting|open|assigned|charging|ended|deadline|terminal"


class AnyParameter(dict):
    def __missing__(self, name):
        return "[]" if name == "rows" else 1


def query_plan(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as database:
        rendered = dialect.render(statement, DIALECT)
        return [row[-1] for row in database.execute(f"EXPLAIN QUERY PLAN {rendered}", AnyParameter())]


def full_scans(plan, statement):
    """Steps that read the whole table; a partial index holds only what is waiting or open, and may be walked."""
    names = {"request", *re.findall(r"\brequest AS (\w+)", statement)}
    return [
        step
        for step in plan
        if (found := re.match(r"SCAN (?:TABLE )?(\w+)(.*)", step))
        and found.group(1) in names
        and not re.search(rf"INDEX request_({PARTIAL_INDEXES})\b", found.group(2))
    ]


@pytest.mark.parametrize("name", list(ON_REQUESTS))
async def test_no_statement_reads_all_requests(ledger, path, name):
    plan = query_plan(path, ALL_STATEMENTS[name])

    assert plan or name == "ACCEPT"
    assert full_scans(plan, ALL_STATEMENTS[name]) == [], plan


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("EXPIRE", "request_deadline"),
        ("WAITING_FIRST", "request_waiting"),
        ("HISTORY", "transition_request"),
        ("FORGETTABLE_AFTER", "request_terminal (status=? AND changed_at_ms>? AND changed_at_ms<?)"),
    ],
)
async def test_what_is_asked_all_the_time_has_an_index_of_its_own(ledger, path, name, index):
    plan = query_plan(path, ALL_STATEMENTS[name])

    assert any(index in step for step in plan), plan
    assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_the_check_of_plans_sees_a_scan_where_there_is_one(ledger, path):
    for statement in ("SELECT id FROM request WHERE zone = 'x'", "SELECT q.id FROM request AS q WHERE q.zone = 'x'"):
        assert full_scans(query_plan(path, statement), statement)


def test_all_statements_on_requests_are_checked():
    assert {"ACCEPT", "ASSIGN", "CLAIM", "END", "EXPIRE", "UNSEEN", "WAITING_FIRST", "TAKE_OVER", "SEND_BACK"} <= set(
        ON_REQUESTS
    )
