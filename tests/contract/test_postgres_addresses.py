"""Which addresses and databases are used as a ledger on PostgreSQL, and what is told of those that are refused."""

import asyncio
import contextlib
import re
import uuid
from urllib.parse import quote

import psycopg
import pytest
from harness.ledger import Ledger, asked, opened
from harness.postgres import PASSWORD
from harness.refused_ledger import refused
from harness.tcp_proxy import TcpProxy
from psycopg import sql

from services.cli import checks_postgres
from services.cli.checks import Finding
from services.errors import Misconfigured

PATIENCE_S = 60
AFTER_A_REFUSAL = 3
"""Connections: one that is refused, one that finds out why, and the next."""
FORM = "give postgresql://user:password@host:port/database"
ENCODE = "percent-encode `#`, `/`, `?`, `@` and `%` in user and password, as `%23`, `%2F`, `%3F`, `%40` and `%25`"
BRACKETS = "write it like postgresql://user:password@[::1]:5432/database"
ADMIT = "correct user and password, or let pg_hba.conf admit this user from this host"


def at(url):
    """Where an address leads, as it is told."""
    return url.rpartition("@")[2].partition("?")[0]


async def refusal(url):
    with pytest.raises(Misconfigured) as caught:
        async with opened(url):
            pass
    assert PASSWORD not in str(caught.value)
    return str(caught.value)


async def test_a_shared_ledger_may_be_postgresql(postgres_url):
    async with opened(postgres_url, shared=True) as connection:
        await Ledger(connection).accepted("a")


async def test_a_password_may_hold_every_sign_that_is_percent_encoded(postgres, postgres_url):
    user, password = f"u{uuid.uuid4().hex[:8]}", "#/?@%:é & '\\"
    database = postgres_url.rpartition("/")[2]
    with new_role(postgres, user, password):
        postgres.execute(f"ALTER DATABASE {database} OWNER TO {user}")
        postgres.execute(f"ALTER SCHEMA public OWNER TO {user}", database)
        async with opened(postgres.url(database, user, quote(password, safe=""))) as connection:
            await Ledger(connection).accepted("a")
        postgres.execute(f"DROP OWNED BY {user}", database)
        postgres.execute(f"ALTER DATABASE {database} OWNER TO postgres")


@contextlib.contextmanager
def new_role(postgres, user, password=PASSWORD, options=""):
    with psycopg.connect(postgres.url(), autocommit=True) as owner:
        owner.execute(sql.SQL(f"CREATE ROLE {user} LOGIN PASSWORD {{}} {options}").format(password))
    try:
        yield
    finally:
        postgres.execute(f"DROP ROLE {user}")


@pytest.mark.parametrize(
    ("was", "becomes", "cause", "cure"),
    [
        (PASSWORD, "wrong-one", 'refuses (password authentication failed for user "postgres")', ADMIT),
        ("postgres:", "nobody-here:", 'refuses (password authentication failed for user "nobody-here")', ADMIT),
        (
            f":{PASSWORD}",
            "",
            "refuses (fe_sendauth: no password supplied)",
            "give a password in the address, or in the file that PGPASSFILE names",
        ),
        (
            "$",
            "?sslmode=require",
            "refuses (server does not support SSL, but SSL was required)",
            "turn ssl on at the server, or take sslmode out of the address",
        ),
        (
            "$",
            "?options=-cfoo%3D1",
            'refuses (unrecognized configuration parameter "foo")',
            "correct the options in the address",
        ),
        (
            "$",
            "?options=-cjit%3Dfoo",
            'refuses (parameter "jit" requires a Boolean value)',
            "correct the options in the address",
        ),
    ],
)
async def test_what_the_server_refuses_for_good_is_told_at_once(postgres_url, was, becomes, cause, cure):
    url = re.sub(was, becomes, postgres_url)

    assert await refused(url, "wrong-one", startup_timeout_s=PATIENCE_S) == (
        Finding.MISCONFIGURED,
        f"{at(url)} {cause}",
        cure,
    )


async def test_a_database_that_is_not_there(postgres):
    assert await refused(postgres.url("nowhere"), PASSWORD, startup_timeout_s=PATIENCE_S) == (
        Finding.MISCONFIGURED,
        f'127.0.0.1:{postgres.port}/nowhere refuses (database "nowhere" does not exist)',
        "correct the database's name, or make the database with createdb",
    )


async def test_a_server_that_is_not_there_is_waited_for(port):
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/evenload"

    assert await refused(url, PASSWORD) == (
        Finding.PROBLEM,
        f"127.0.0.1:{port}/evenload does not answer (Connection refused)",
        "start PostgreSQL there, or correct host and port",
    )


async def test_a_host_whose_name_nobody_knows_yet_is_waited_for(postgres_url):
    finding, cause, cure = await refused(postgres_url.replace("@127.0.0.1", "@localhost.invalid"), PASSWORD)

    assert finding is Finding.PROBLEM
    assert "does not answer (failed to resolve host 'localhost.invalid'" in cause
    assert cure == "start PostgreSQL there, or correct host and port"


async def test_several_hosts_are_asked_one_after_the_other(postgres, postgres_url, port):
    several = postgres_url.replace("@127.0.0.1:", f"@127.0.0.1:{port},127.0.0.1:")

    async with opened(several) as connection:
        await Ledger(connection).accepted("a")
    assert await refused(several.replace(PASSWORD, "wrong-one"), "wrong-one", startup_timeout_s=PATIENCE_S) == (
        Finding.MISCONFIGURED,
        (
            f"127.0.0.1:{port},127.0.0.1:{postgres.port}/{postgres_url.rpartition('/')[2]} refuses "
            '(Connection refused; password authentication failed for user "postgres")'
        ),
        ADMIT,
    )


async def test_no_free_connection_is_waited_for_and_told(postgres, postgres_url):
    user, database = f"u{uuid.uuid4().hex[:8]}", postgres_url.rpartition("/")[2]
    url = postgres.url(database, user)
    with new_role(postgres, user, options="CONNECTION LIMIT 3"), contextlib.ExitStack() as held:
        postgres.execute(f"GRANT ALL ON SCHEMA public TO {user}", database)
        held.callback(postgres.execute, f"DROP OWNED BY {user}", database)
        for _ in range(3):
            held.enter_context(contextlib.closing(psycopg.connect(url)))
        assert await refused(url, PASSWORD) == (
            Finding.PROBLEM,
            f'{at(url)} refuses (too many connections for role "{user}")',
            "no free connection, so raise max_connections, or the limit of the user or the database",
        )
        with TcpProxy(postgres.port) as proxy, psycopg.connect(postgres.url(), autocommit=True) as owner:
            opening = asyncio.create_task(live_with(url.replace(f":{postgres.port}/", f":{proxy.port}/")))
            async with asyncio.timeout(PATIENCE_S):
                while proxy.accepted < AFTER_A_REFUSAL and not opening.done():
                    await asyncio.sleep(0.01)
            owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [user])
            await opening


async def live_with(url):
    async with opened(url, startup_timeout_s=PATIENCE_S) as connection:
        await Ledger(connection).accepted("a")


@pytest.mark.parametrize(
    ("url", "cause", "cure"),
    [
        ("user:te/tests-own@host/db", "holds a sign that ends its password too early", ENCODE),
        ("user:te@tests-own@host/db", "holds a sign that ends its password too early", ENCODE),
        ("user:tests-own%zz@host/db", "cannot be used (invalid percent-encoded token)", ENCODE),
        ("user@host/db?password=tests-own%zz", "cannot be used (invalid percent-encoded token)", ENCODE),
        (
            "user:tests-own@host:port/db",
            'cannot be used (invalid integer value "port" for connection option "port")',
            FORM,
        ),
        ("user:tests-own@host:70000/db", 'cannot be used (invalid port number: "70000")', FORM),
        ("user:tests-own@host/db?colour=blue", 'cannot be used (invalid URI query parameter: "colour")', FORM),
        ("user:tests-own@host/db?sslmode=verify_full", 'cannot be used (invalid sslmode value: "verify_full")', FORM),
        ("user:tests-own@[::1/db", "has an IPv6 address without brackets", BRACKETS),
        ("user:tests-own@h1,2001:db8::1:5432/db", "has an IPv6 address without brackets", BRACKETS),
        ("::1/db", "has an IPv6 address without brackets", BRACKETS),
        ("user:tests own@host/db", "cannot be used (unexpected spaces found in)", "write a blank as `%20`"),
        ("h1,h2/db?port=1,2,3", "cannot be used (could not match 3 port numbers to 2 hosts)", FORM),
        ("/db?service=nobodys", 'cannot be used (definition of service "nobodys" not found)', FORM),
        (
            "user:tests-own@h1,h2/db?target_session_attrs=primry",
            'cannot be used (invalid target_session_attrs value: "primry")',
            FORM,
        ),
    ],
)
async def test_what_libpq_cannot_use_is_told_in_its_words_before_any_server_is_asked(url, cause, cure):
    assert await refused(f"postgresql://{url}", "tests-own", startup_timeout_s=PATIENCE_S) == (
        Finding.MISCONFIGURED,
        cause,
        cure,
    )


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("", "the local socket:5432/root"),
        ("host", "host:5432/root"),
        ("/db", "the local socket:5432/db"),
        ("user:te#tests?own@host/db", "host:5432/db"),
        ("user@[::1]:77/db", "::1:77/db"),
        ("/db?host=/run/postgresql&port=77", "/run/postgresql:77/db"),
        ("user:tests-own@h1:5432,h2:5433/db?target_session_attrs=read-write", "h1:5432,h2:5433/db"),
    ],
)
def test_what_libpq_can_use_is_no_business_of_ours(url, where, monkeypatch):
    monkeypatch.setenv("PGUSER", "root")

    assert checks_postgres.place(f"postgresql://{url}") == where


@pytest.mark.parametrize("tables", ["accounts (id integer)", "meta (a text)", "meta (name text, value text)"])
async def test_somebody_elses_database_is_refused_and_left_as_it_is(postgres_url, tables):
    with psycopg.connect(postgres_url) as connection:
        connection.execute(f"CREATE TABLE {tables}")
    before = tables_of(postgres_url)

    assert "not Evenload's ledger: name another database" in await refusal(postgres_url)
    assert tables_of(postgres_url) == before


def tables_of(url):
    return asked(url, "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'")


async def test_a_ledger_of_a_newer_schema_is_refused_and_left_as_it_is(postgres_url):
    async with opened(postgres_url):
        pass
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE meta SET value = '999' WHERE name = 'schema_version'")

    assert "schema version 999" in await refusal(postgres_url)


async def test_a_user_who_may_not_make_tables_is_told_how_they_are_made(postgres, postgres_url):
    user = f"u{uuid.uuid4().hex[:8]}"
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'")
    database = postgres_url.rpartition("/")[2]

    try:
        said = await refusal(postgres.url(database, user))
    finally:
        postgres.execute(f"DROP ROLE {user}")

    assert "permission denied for schema public" in said
    assert "python -m services.ledger.provision" in said
