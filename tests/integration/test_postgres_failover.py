"""A ledger whose server turns into another, or lives but serves nothing: services find the one that serves."""

import asyncio
import contextlib
import os
import signal

import psutil
import psycopg
import pytest
from harness.ledger import Ledger, asked, changed, opened
from harness.postgres import PASSWORD, find_postgres, running_postgres, running_standby
from harness.refused_ledger import refused
from harness.tcp_proxy import Direction, TcpProxy

from services.cli.checks import Finding
from services.errors import LedgerUnavailable
from services.ledger import postgres as postgres_driver
from services.ledger import postgres_connection
from services.ledger.committer import Operation
from services.ledger.intake import ACCEPT

PATIENCE_S = 60
OUR_SESSIONS = "datname = current_database() AND application_name = 'evenload'"


@contextlib.contextmanager
def hurried():
    """Deadlines that a test can wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_connection, "ANSWER_WITHIN_S", 1.5)
        patch.setattr(postgres_driver, "RETRY_FOR_S", 0.1)
        yield


@pytest.fixture(scope="module")
def pair():
    """A primary and its standby."""
    programs = find_postgres()
    with running_postgres(programs) as primary, running_standby(programs, primary) as standby:
        yield primary, standby


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


async def accept_in_the_end(ledger, request_id):
    """Ask again, as a client does that got a 503."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(LedgerUnavailable):
                await ledger.accepted(request_id)
                return
            await asyncio.sleep(0.1)


SERVES_NOTHING = """
CREATE TABLE serves_nothing (pid integer);
CREATE FUNCTION serve_nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
IF EXISTS (SELECT FROM serves_nothing WHERE pid = pg_backend_pid()) THEN {failing}; END IF; RETURN NEW; END $$;
CREATE TRIGGER serve_nothing BEFORE INSERT ON request FOR EACH ROW EXECUTE FUNCTION serve_nothing();
"""


@pytest.mark.parametrize(
    "failing",
    [
        pytest.param("SET LOCAL transaction_read_only = on; DELETE FROM serves_nothing", id="25006"),
        pytest.param("PERFORM DISTINCT 1 FROM serves_nothing FOR UPDATE", id="0A000"),
        pytest.param("EXECUTE 'DEALLOCATE no_such_plan'", id="26000"),
        pytest.param("PERFORM pg_read_file('no such file')", id="58P01"),
        pytest.param("PERFORM no_such_function()", id="42883"),
        pytest.param("PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(20)", id="57P01"),
    ],
)
async def test_a_connection_that_serves_nothing_any_more_is_left_unseen(postgres_url, failing):
    """As after a fail-over behind one address: this session does not write any more, and a new one does."""
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        changed(postgres_url, SERVES_NOTHING.format(failing=failing))
        changed(postgres_url, f"INSERT INTO serves_nothing SELECT pid FROM pg_stat_activity WHERE {OUR_SESSIONS}")

        await ledger.accepted("a")

        assert await ledger.status("a") == "accepted"
        assert connection.fault is None


async def test_a_table_that_was_changed_under_a_prepared_statement_is_read_all_the_same(postgres_url):
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("a")
        for _ in range(8):
            assert await ledger.status("a") == "accepted"
        changed(postgres_url, "ALTER TABLE transition ALTER reason TYPE varchar(99)")
        changed(postgres_url, "ALTER TABLE request ALTER substation TYPE varchar(99)")

        assert await ledger.status("a") == "accepted"


async def test_a_server_whose_sessions_become_read_only_by_default_is_written_all_the_same(postgres, postgres_url):
    database = postgres_url.rpartition("/")[2]
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        postgres.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        await ledger.accepted("with the old connection")
        assert asked(
            postgres_url, f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {OUR_SESSIONS}"
        )
        await ledger.accepted("with a new one")


def through(proxy, url):
    return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{proxy.port}/{url.rpartition('/')[2]}?connect_timeout=2"


async def test_a_server_that_takes_everything_and_answers_nothing_holds_up_nobody(postgres, postgres_url):
    """The kernel at the other end confirms every byte, so no timeout of TCP's ever comes."""
    with TcpProxy(postgres.port) as proxy:
        async with opened(through(proxy, postgres_url)) as connection:
            ledger = Ledger(connection)
            await ledger.accepted("a")
            await ledger.status("a")

            with hurried():
                proxy.stall()
                for asking in (ledger.accepted("b"), ledger.status("a")):
                    with pytest.raises(
                        LedgerUnavailable, match=r"PostgreSQL: (the server has not answered for|connection tim)"
                    ):
                        await asking
                assert connection.fault.startswith("PostgreSQL: ")

            proxy.heal()
            await accept_in_the_end(ledger, "c")
            assert await ledger.status("c") == "accepted"
            assert connection.fault is None


async def test_a_server_that_freezes_during_the_commit_leaves_its_outcome_unknown(postgres, postgres_url):
    with TcpProxy(postgres.port) as proxy:
        async with opened(through(proxy, postgres_url)) as connection:

            def accept_and_stall(transaction, rows):
                answer = ACCEPT.apply(transaction, rows)
                proxy.stall(Direction.FROM_TARGET)
                return answer

            ledger = Ledger(connection)
            await ledger.accepted("template")
            row = {"asked": "a", "id": "a", "vehicle_id": "EV-1", "energy_requested_j": 1, "power_max_w": 1,
                   "priority": 0,
                   "zone": None, "depart_by_ms": None, "departs_at_ms": None, "wait_max_ms": 1_000_000,
                   "idempotency_key": None, "body_hash": None}  # fmt: skip
            with (
                hurried(),
                pytest.raises(
                    LedgerUnavailable, match="during the commit, whose outcome is unknown: the server has not"
                ),
            ):
                await connection.write(Operation("stalling", "asked", accept_and_stall), [row])
            proxy.heal()

            await accept_in_the_end(ledger, "b")
    assert asked(postgres_url, "SELECT count(*) FROM request WHERE id = 'a'") == [(1,)]


async def test_a_session_of_the_server_that_is_frozen_is_left_for_another(postgres_url):
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("a")
        sessions = [pid for (pid,) in asked(postgres_url, f"SELECT pid FROM pg_stat_activity WHERE {OUR_SESSIONS}")]
        for pid in sessions:
            psutil.Process(pid).suspend()
        try:
            with hurried():
                await ledger.accepted("b")
                assert await ledger.status("b") == "accepted"
        finally:
            for pid in sessions:
                psutil.Process(pid).resume()


async def test_a_server_that_is_stopping_or_starting_is_waited_for():
    with running_postgres(find_postgres()) as server, psycopg.connect(server.url()):
        os.kill(server.pid, signal.SIGTERM)  # it ends when the last connection does, and takes no other
        await until(lambda: refusal_of(server.url()) is not None)

        assert await refused(server.url(), PASSWORD) == (
            Finding.PROBLEM,
            f"127.0.0.1:{server.port}/postgres refuses (the database system is shutting down)",
            "wait until the server is up",
        )


async def test_a_standby_alone_is_told_from_a_server_that_is_away(pair):
    _primary, standby = pair
    assert await refused(standby.url(), PASSWORD) == (
        Finding.PROBLEM,
        f"127.0.0.1:{standby.port}/postgres refuses (server is in hot standby mode)",
        "name the primary, or all servers as host1:port,host2:port",
    )
    assert await refused(f"{standby.url()}?target_session_attrs=any", PASSWORD) == (
        Finding.PROBLEM,
        f"127.0.0.1:{standby.port}/postgres refuses (cannot set transaction read-write mode during recovery)",
        "this server cannot be written, so name the primary, or all servers as host1:port,host2:port",
    )


async def test_after_a_fail_over_the_ledger_is_written_and_read_on_the_promoted_server(pair):
    primary, standby = pair
    hosts = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{standby.port},127.0.0.1:{primary.port}/postgres"
    async with opened(hosts) as connection, opened(f"{hosts}?target_session_attrs=read-write") as other:
        ledgers = Ledger(connection), Ledger(other)
        for number, ledger in enumerate(ledgers):
            await ledger.accepted(f"before-{number}")
        await until(lambda: has_replayed(standby, requests=2))
        os.kill(primary.pid, signal.SIGQUIT)
        await until(lambda: refusal_of(primary.url()) is not None)
        with hurried(), pytest.raises(LedgerUnavailable):  # the primary is gone, and the standby is none yet
            await ledgers[0].accepted("between")
        standby.execute("SELECT pg_promote()")

        for number, ledger in enumerate(ledgers):
            await accept_in_the_end(ledger, f"after-{number}")
            assert await ledger.status("before-0") == "accepted"
    assert sorted(asked(standby.url(), "SELECT id FROM request WHERE id <> 'between'")) == [
        ("after-0",), ("after-1",), ("before-0",), ("before-1",)
    ]  # fmt: skip


def has_replayed(standby, requests):
    with contextlib.suppress(psycopg.errors.UndefinedTable):
        return asked(standby.url(), "SELECT count(*) FROM request") == [(requests,)]
    return False


def refusal_of(url):
    try:
        psycopg.connect(url).close()
    except psycopg.Error as error:
        return str(error)
    return None
