"""Ledgers for the contract tests; whatever a test did, every history must be sound afterwards."""

import contextlib
import sqlite3

import pytest
from harness.ledger import (
    Ledger,
    all_histories,
    opened,
    registration,
)

from services.ledger.states import Reason, faults


@pytest.fixture
def path(tmp_path):
    """Where the ledger lies; whatever a test did to it, its histories must be sound afterwards."""
    where = tmp_path / "ledger.sqlite"
    yield where
    histories, last = all_histories(where)
    assert histories.keys() == last.keys()
    for request_id, history in histories.items():
        assert faults(history) == [], request_id
        assert history[-1].status == last[request_id]
        assert {one.reason for one in history} <= set(Reason)
        assert [one.at_ms for one in history] == sorted(one.at_ms for one in history)


@pytest.fixture
def execute(path):
    """Changes the ledger behind everybody's back."""

    def run(statement, *parameters):
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(statement, parameters)

    return run


@pytest.fixture
async def ledger(path):
    async with opened(path) as connection:
        one = Ledger(connection)
        await one.take(registration("north"), registration("south"))
        yield one


@pytest.fixture
async def rival(path, ledger):
    """Another process on the same ledger."""
    async with opened(path) as connection:
        yield Ledger(connection)
