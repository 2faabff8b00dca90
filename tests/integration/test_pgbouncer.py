"""A real PgBouncer between the services and PostgreSQL: which pool modes work, and what is told of its refusals."""

import asyncio
import contextlib
import re

import psycopg
import pytest
from harness.ledger import Ledger, new_request, opened, registration
from harness.pgbouncer import find_pgbouncer, running_pgbouncer
from harness.postgres import PASSWORD
from harness.refused_ledger import refused
from harness.tcp_proxy import TcpProxy

from services.cli.checks import Finding
from services.cli.checks_ledger import check_ledger
from services.ledger.records import Accepted

PATIENCE_S = 60


@pytest.fixture(scope="module")
def programs():
    return find_pgbouncer()


@pytest.fixture
def bouncing(programs, postgres, postgres_url, monkeypatch):
    """Starts a PgBouncer before the test's empty database."""
    monkeypatch.setenv("EVENLOAD_SPEED", "60")
    with contextlib.ExitStack() as stack:
        yield lambda pool_mode="transaction", server_port=postgres.port, **settings: stack.enter_context(
            running_pgbouncer(programs, server_port, pool_mode, **settings)
        )


@pytest.mark.parametrize("pool_mode", ["transaction", "session"])
async def test_two_services_keep_a_ledger_through_a_pool(bouncing, postgres_url, pool_mode):
    """In transaction mode they share two sessions of the server, which know nothing of one another's settings."""
    url = bouncing(pool_mode, default_pool_size=2 if pool_mode == "transaction" else 4).before(postgres_url)
    async with opened(url) as first, opened(url) as second:
        one, other = Ledger(first), Ledger(second)
        await one.take(registration("north", connectors=40))
        for number in range(12):  # psycopg prepares what it has said five times
            answers = await asyncio.gather(
                *(each.intake.accept([new_request(f"{number}-{name}", vehicle_id="É")])
                  for name, each in (("one", one), ("other", other)))
            )  # fmt: skip
            assert {type(answer) for [answer] in answers} == {Accepted}
        assert await other.ended("a") == {"a": 1}
        assert [line.status for line in await one.history("a")] == ["accepted", "assigned", "charging", "completed"]
        assert len(await other.intake.listed(before=2**62, most=99, status=None, substation=None)) == 25

    assert {one.check: one.finding for one in check_ledger(url) if one.check != "ledger disk"} == {
        "ledger": Finding.OK, "speed": Finding.OK
    }  # fmt: skip
    assert states_of_sessions(url) == [("0", "on", 0)] * 2


def states_of_sessions(url):
    """What those who get the server's sessions after us find there: two settings, and how many prepared statements."""
    with contextlib.ExitStack() as stack:
        return [
            stack.enter_context(psycopg.connect(url))
            .execute(
                "SELECT current_setting('statement_timeout'), current_setting('enable_seqscan'), "
                "(SELECT count(*) FROM pg_prepared_statements)"
            )
            .fetchone()
            for _ in range(2)
        ]


def at(url):
    """Where an address leads, as it is told."""
    return url.rpartition("@")[2].partition("?")[0]


async def test_statement_pooling_is_refused_by_name(bouncing, postgres_url):
    url = bouncing("statement").before(postgres_url)

    assert await refused(url, PASSWORD, startup_timeout_s=PATIENCE_S) == (
        Finding.MISCONFIGURED,
        f"{at(url)} refuses (transaction blocks not allowed in statement pooling mode)",
        "set pool_mode to transaction or session in pgbouncer.ini",
    )


async def test_a_pooler_that_is_paused_reloaded_and_restarted_loses_nothing(bouncing, programs, postgres, postgres_url):
    bouncer = bouncing()
    async with opened(bouncer.before(postgres_url)) as connection:
        ledger = Ledger(connection)
        await ledger.accepted("before")
        await asyncio.to_thread(bouncer.command, "PAUSE")
        waiting = asyncio.create_task(ledger.accepted("paused"))
        await asyncio.sleep(0)
        await asyncio.to_thread(bouncer.command, "RESUME")
        await waiting
        await asyncio.to_thread(bouncer.command, "RELOAD")
        await ledger.accepted("reloaded")
        await asyncio.to_thread(bouncer.end)
        with running_pgbouncer(programs, postgres.port, "transaction", port=bouncer.port):
            await ledger.accepted("restarted")

            assert [await ledger.status(one) for one in ("paused", "reloaded", "restarted")] == ["accepted"] * 3


async def test_a_pooler_without_a_free_connection_is_waited_for(bouncing, postgres_url):
    url = bouncing(max_client_conn=1).before(postgres_url)
    with psycopg.connect(url):
        assert await refused(url, PASSWORD) == (
            Finding.PROBLEM,
            f"{at(url)} refuses (no more connections allowed (max_client_conn))",
            "no free connection at PgBouncer, so raise max_client_conn",
        )


async def test_a_pool_that_is_used_up_is_told(bouncing, postgres_url):
    url = bouncing(default_pool_size=1, query_wait_timeout=1).before(postgres_url)
    with psycopg.connect(url) as busy:
        busy.execute("SELECT 1")
        assert await refused(url, PASSWORD) == (
            Finding.PROBLEM,
            f"{at(url)} refuses (query_wait_timeout)",
            "no free connection at PgBouncer, so raise default_pool_size",
        )


async def test_a_pooler_waits_for_its_server_and_so_do_we(bouncing, postgres, postgres_url):
    with TcpProxy(postgres.port) as between:
        between.refuse()
        url = f"{bouncing(server_port=between.port, server_login_retry=1).before(postgres_url)}?connect_timeout=2"
        assert await refused(url, PASSWORD) == (
            Finding.PROBLEM,
            f"{at(url)} does not answer (connection timeout expired)",
            "see whether the server is frozen or cut off, or whether a pooler before it waits for a connection",
        )

        between.heal()
        async with opened(url, startup_timeout_s=PATIENCE_S) as connection:
            await Ledger(connection).accepted("a")


@pytest.mark.parametrize(
    ("was", "becomes", "cause", "cure"),
    [
        (
            f":{PASSWORD}@",
            ":wrong-one@",
            "SASL authentication failed",
            "correct user and password in the address and in PgBouncer's auth_file",
        ),
        (
            "$",
            "?options=-cjit%3Doff",
            "unsupported startup parameter: options",
            "take the parameter out of the address",
        ),
    ],
)
async def test_what_a_pooler_refuses_for_good_is_told_at_once(bouncing, postgres_url, was, becomes, cause, cure):
    url = re.sub(was, becomes, bouncing().before(postgres_url))

    assert await refused(url, "wrong-one", startup_timeout_s=PATIENCE_S) == (
        Finding.MISCONFIGURED,
        f"{at(url)} refuses ({cause})",
        cure,
    )
