"""A primary whose standby is away: nothing is told that only the primary has, whoever ends a commit's wait."""

import asyncio
import contextlib
import time

import psycopg
import pytest
from harness.ledger import Ledger, ending, new_request, opened, registration
from harness.postgres import find_postgres, fresh_database, running_postgres

from services.errors import LedgerUnavailable
from services.ledger import postgres_connection
from services.ledger.records import Accepted, Claims
from services.ledger.states import Status
from services.messages import Hint

PATIENCE_S = 60
WAITING = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def primary():
    with running_postgres(find_postgres()) as server:
        yield server


@pytest.fixture
def url(primary):
    with fresh_database(primary) as one:
        yield one


@pytest.fixture
def standby_is_away(primary, monkeypatch):
    """Has the primary wait for a standby that is not there, while a block lasts."""
    monkeypatch.setattr(postgres_connection, "ANSWER_WITHIN_S", 1.0)

    @contextlib.contextmanager
    def away():
        set_standby(primary, "nobody")
        try:
            yield
        finally:
            set_standby(primary, "")

    return away


def set_standby(primary, name):
    with psycopg.connect(primary.url(), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        connection.execute("SELECT pg_reload_conf()")
        if name:
            until_commits_wait(primary, connection)


def until_commits_wait(primary, connection):
    """Commits begin to wait at a moment of the server's own: try until one does."""
    with contextlib.closing(psycopg.connect(primary.url(), autocommit=True)) as trying:
        give_up_at = time.monotonic() + PATIENCE_S
        while not connection.execute(f"SELECT 1 {WAITING}").fetchone():
            assert time.monotonic() < give_up_at, "commits do not wait"
            if trying.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                trying.pgconn.send_query(b"SELECT pg_logical_emit_message(true, 'test', '')")
            trying.pgconn.consume_input()
            while not trying.pgconn.is_busy() and trying.pgconn.get_result():
                pass
        connection.execute(f"SELECT pg_terminate_backend(pid) {WAITING}")


async def end_the_wait(url, how):
    """End the wait of the commit that waits for its standby."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, asyncio.timeout(PATIENCE_S):
        while await (await connection.execute(f"SELECT {how}(pid) {WAITING}")).fetchone() != (True,):
            await asyncio.sleep(0.02)


def with_key(request_id):
    return new_request(request_id, idempotency_key="key", body_hash="hash")


async def accept_again(ledger):
    [answer] = await ledger.intake.accept([with_key("another id")])
    return answer.asked, answer.request_id


async def claim_again(ledger):
    claims: Claims = await ledger.charging.claim([Hint("charges", 1)], "north", 1, 9)
    return [one.request_id for one in claims.claimed]


async def accept_types(ledger, *requests):
    return [type(one) for one in await ledger.intake.accept(requests)]


ANSWERS = {
    "accept by its key": (accept_again, ("another id", "keyed")),
    "accept by its id": (lambda ledger: accept_types(ledger, new_request("charges")), [Accepted]),
    "withdraw": (lambda ledger: ledger.intake.withdraw("cancelled"), Status.CANCELLED),
    "claim": (claim_again, ["charges"]),
    "end": (lambda ledger: ledger.charging.end([ending("ended")]), {"ended": 1}),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_stands_already_is_told_only_when_a_standby_has_it(url, standby_is_away, name):
    ask, expected = ANSWERS[name]
    async with opened(url) as connection:
        ledger = Ledger(connection)
        await ledger.take(registration("north"))
        await ledger.intake.accept([with_key("keyed")])
        await ledger.accepted("cancelled")
        await ledger.intake.withdraw("cancelled")
        await ledger.ended("ended")
        await ledger.claimed("charges")

        with standby_is_away(), pytest.raises(LedgerUnavailable, match="outcome is unknown: the server has not answer"):
            await ask(ledger)

        assert await ask(ledger) == expected


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_commit_whose_wait_is_ended_by_hand_is_told_as_unknown(primary, url, standby_is_away, monkeypatch, how):
    """Also where nobody is to hear warnings, which are all that a cancelled wait says."""
    primary.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET client_min_messages = error")
    async with opened(url) as connection:
        ledger = Ledger(connection)
        with standby_is_away():
            monkeypatch.setattr(postgres_connection, "ANSWER_WITHIN_S", PATIENCE_S)
            asking = asyncio.create_task(ledger.accepted("a"))
            await end_the_wait(url, how)
            with pytest.raises(LedgerUnavailable, match="the commit, whose outcome is unknown") as caught:
                await asking
        assert ("the wait for the standby was ended by hand" in str(caught.value)) == (how == "pg_cancel_backend")
        assert await accept_types(ledger, new_request("a")) == [Accepted]
