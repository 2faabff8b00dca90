"""Every statement finds its rows by an index on PostgreSQL too, whatever the planner thinks of the table."""

import contextlib
import re
from dataclasses import dataclass

import pytest
from harness.postgres import fresh_database

from services.ledger import dialect, lease_statements, schema, statements
from services.ledger.postgres import DIALECT, PostgresTransaction, connect

ALL_STATEMENTS = {
    name: text
    for name, text in {**vars(statements), **vars(lease_statements)}.items()
    if name.isupper() and isinstance(text, str) and re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)\b", text)
}
ON_REQUESTS = sorted(name for name, text in ALL_STATEMENTS.items() if re.search(r"\b(request|transition)\b", text))
BY_ID = sorted(name for name in ON_REQUESTS if re.search(r"(request|q)\.id = (r|c)\.", ALL_STATEMENTS[name]))
ENDED, OPEN, OPEN_STATES = 20_000, 200, ["accepted", "assigned", "charging"]
TABLES = ("request", "transition")
WHOLE_INDEXES = (
    "request_pkey",
    "request_id_key",
    "request_idempotency_key_key",
    "transition_pkey",
    "transition_request",
)
ALSO = {
    "CLAIM": {"request_charging"},
    "TAKE_OVER": {"request_charging"},
    "SEND_ELSEWHERE": {"request_charging"},
    "ACCEPTED": {"request_idempotency_key_key"},
}
"""What statements look up besides, for a count or another key."""


@pytest.fixture(scope="module", params=["never analysed", "analysed", "grown since it was analysed"])
def database(request, postgres):
    """A connection to a ledger of which the planner knows nothing, all, or only the past."""
    with made_ledger(postgres) as connection:
        fill(connection, ENDED, ["completed"])
        fill(connection, OPEN, OPEN_STATES)
        if request.param != "never analysed":
            connection.execute("ANALYZE")
        if request.param.startswith("grown"):
            fill(connection, ENDED, OPEN_STATES)
        yield connection


@contextlib.contextmanager
def made_ledger(postgres):
    with fresh_database(postgres) as url, connect(url) as connection:
        for statement in schema.POSTGRES:
            connection.execute(statement)
        for table in TABLES:
            connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        yield connection


def fill(connection, count, states):
    # No service writes so much at once, so their deadline does not count here.
    connection.execute("SET statement_timeout = 0")
    connection.execute(
        """
        INSERT INTO request (id, vehicle_id, energy_requested_j, power_max_w, priority, accepted_at_ms, wait_max_ms,
                             wait_until_ms, changed_at_ms, status, reason, substation, epoch, claim_number, end_number)
        SELECT gen_random_uuid()::text, 'EV', 1, 1, 0, n, 1000, n + 1000, n,
               (%(states)s::text[])[1 + n %% %(kinds)s], 'any', 'north' || n %% 4, 1, n,
               CASE WHEN 'completed' = ANY(%(states)s::text[]) THEN n END
        FROM generate_series(1, %(count)s) AS n
        """,
        {"count": count, "states": states, "kinds": len(states)},
    )


@dataclass(frozen=True)
class Step:
    node: str
    table: str | None
    index: str | None
    condition: str | None
    is_one_row: bool
    """Whether it stops at the first row that it finds, which is all that it reads."""


def plan_of(connection, statement):
    rendered = dialect.render(statement, DIALECT)
    parameters = dict.fromkeys(re.findall(r"%\((\w+)\)s", rendered), 1)
    parameters |= {name: "x" for name in ("status", "substation", "id", "speed") if name in parameters}
    parameters |= {"rows": "[]"} if "rows" in parameters else {}
    [row] = connection.execute(f"EXPLAIN (FORMAT JSON) {rendered}", parameters).fetchall()
    steps, left = [], [({}, row["QUERY PLAN"][0]["Plan"])]
    while left:
        above, node = left.pop()
        left += [(node, one) for one in node.get("Plans", [])]
        is_one_row = above.get("Node Type") == "Limit" and above["Plan Rows"] == 1 and "Filter" not in node
        found = (node.get(word) for word in ("Node Type", "Relation Name", "Index Name", "Index Cond"))
        steps.append(Step(*found, is_one_row))
    return steps


def full_scans(plan):
    """Steps that read a whole table; an index of what is open, waiting or ended may be walked."""
    return [
        step
        for step in plan
        if not step.is_one_row
        and (
            (step.table in TABLES and step.node == "Seq Scan")
            or (step.node.endswith("Scan") and step.index in WHOLE_INDEXES and not step.condition)
        )
    ]


@pytest.mark.parametrize("name", ON_REQUESTS)
def test_no_statement_reads_all_requests(database, name):
    plan = plan_of(database, ALL_STATEMENTS[name])

    assert full_scans(plan) == [], plan


@pytest.mark.parametrize("name", BY_ID)
def test_what_is_asked_by_id_is_found_by_id(database, name):
    plan = plan_of(database, ALL_STATEMENTS[name])

    used = {step.index for step in plan if step.index and step.index.startswith("request_")}
    allowed = {"request_id_key"} | ALSO.get(name, set())
    assert "request_id_key" in used, plan
    assert used <= allowed, plan


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("EXPIRE", "request_deadline"),
        ("WAITING_FIRST", "request_waiting"),
        ("IN_LINE", "request_waiting"),
        ("ASSIGNED_HERE", "request_assigned"),
        ("CHARGING_HERE", "request_charging"),
        ("GRANT", "request_charging"),
        ("SETTLE", "request_charging"),
        ("ORPHANED", "request_charging"),
        ("LEAVE_BAYS", "request_assigned"),
        ("SEND_BACK", "transition_request request_assigned"),
        ("UNCLAIMED", "request_assigned"),
        ("LIST", "request_pkey"),
        ("HISTORY", "transition_request"),
    ],
)
def test_what_is_asked_all_the_time_has_an_index_of_its_own(database, name, index):
    plan = plan_of(database, ALL_STATEMENTS[name])

    assert [step.index for step in plan if step.index and not step.index.startswith("substation")] == index.split(), (
        plan
    )


def test_an_empty_ledger_is_not_read_as_a_whole_either(postgres):
    with made_ledger(postgres) as connection:
        steps = [step for name in ON_REQUESTS for step in plan_of(connection, ALL_STATEMENTS[name])]
    assert [step for step in steps if step.node == "Seq Scan" and step.table in TABLES] == []


def test_a_plan_that_was_made_for_an_empty_ledger_is_not_kept_for_a_full_one(postgres):
    with made_ledger(postgres) as connection:
        transaction = PostgresTransaction(connection)
        for _ in range(20):
            transaction.execute(statements.ASSIGN, [["nobody", 0, "north", "{}"]])
        fill(connection, ENDED, ["accepted"])
        with connection.transaction():
            transaction.execute(statements.ASSIGN, [["nobody", 0, "north", "{}"]])
            [read] = connection.execute(
                "SELECT seq_tup_read + idx_tup_fetch AS rows FROM pg_stat_xact_user_tables WHERE relname = 'request'"
            )
    assert read["rows"] == 0


def test_the_check_of_plans_sees_a_scan_where_there_is_one(database):
    for asked in (
        "SELECT id FROM request WHERE zone = 'x'",
        "SELECT id FROM request WHERE zone = 'x' LIMIT 1",
        "SELECT id FROM request ORDER BY arrival",
    ):
        assert full_scans(plan_of(database, asked)), asked


def test_all_statements_on_requests_are_checked():
    assert {"ACCEPT", "ASSIGN", "CLAIM", "END", "EXPIRE", "UNSEEN", "WAITING_FIRST", "FORGET_HISTORY"} <= set(
        ON_REQUESTS
    )
    assert {"ASSIGN", "CLAIM", "END", "PROGRESS", "GIVE_BACK", "WITHDRAW", "HELD", "ENDED"} <= set(BY_ID)


def test_a_page_of_what_may_be_forgotten_is_found_by_its_state_and_time(database):
    [scan] = [step for step in plan_of(database, statements.FORGETTABLE_AFTER) if step.table == "request"]

    assert scan.index == "request_terminal"
    assert all(column in scan.condition for column in ("status", "changed_at_ms <=", "changed_at_ms >="))
