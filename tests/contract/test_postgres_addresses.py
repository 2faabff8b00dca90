"""Which addresses and databases are used as a ledger on PostgreSQL, and what is told of those that are refused."""

import uuid

import psycopg
import pytest
from harness.ledger import Ledger, asked, opened
from harness.postgres import PASSWORD

from services.errors import Misconfigured


async def refusal(url, **changes):
    with pytest.raises(Misconfigured) as caught:
        async with opened(url, **changes):
            pass
    assert PASSWORD not in str(caught.value)
    assert "wrong-one" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "EVENLOAD_LEDGER_URL" in str(caught.value)
    return str(caught.value)


async def test_a_shared_ledger_may_be_postgresql(postgres_url):
    async with opened(postgres_url, shared=True) as connection:
        await Ledger(connection).accepted("a")


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        (PASSWORD, "wrong-one", "password authentication failed"),
        ("postgres:", "nobody-here:", "authentication failed"),
        ("@127.0.0.1", "@localhost.invalid", "does not answer"),
    ],
)
async def test_an_address_that_the_server_refuses_or_nobody_serves(postgres_url, was, becomes, told):
    said = await refusal(postgres_url.replace(was, becomes), startup_timeout_s=0.2)

    assert told in said
    assert "correct" in said


async def test_a_database_that_is_not_there(postgres):
    assert "does not exist): correct user, password and database" in await refusal(postgres.url("nowhere"))


async def test_a_server_that_is_not_there(port):
    url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/evenload"

    said = await refusal(url, startup_timeout_s=0.2)

    assert f"127.0.0.1:{port}/evenload does not answer" in said
    assert "start PostgreSQL there" in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql://host/database",
        f"postgresql://user:{PASSWORD}@host",
        f"postgresql://user:{PASSWORD}@/database",
        f"postgresql://user:{PASSWORD}@host:port/database",
        f"postgresql://user:{PASSWORD}@host:70000/database",
        f"postgresql://user:{PASSWORD}%zz@host/database",
        f"postgresql://user:{PASSWORD}@host/database?colour=blue",
    ],
)
async def test_what_is_no_address(url):
    assert (await refusal(url)).endswith("give postgresql://user:password@host:port/database")


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
