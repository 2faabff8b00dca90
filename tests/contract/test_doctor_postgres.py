"""The doctor's look into a PostgreSQL ledger: what it finds, and that it leaves everything as it was."""

import pytest
from harness.ledger import Ledger, asked, changed, opened, registration

from services.cli.checks import Finding
from services.cli.checks_ledger import check_ledger, registered_substations


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.setenv("EVENLOAD_SPEED", "60")


@pytest.fixture
async def url(postgres_url):
    """A ledger in which a process holds north."""
    async with opened(postgres_url) as connection:
        await Ledger(connection).take(registration("north"))
        yield postgres_url


def findings(url):
    return {one.check: one for one in check_ledger(url)}


async def test_a_sound_ledger_is_well_and_told_without_its_password(url):
    found = findings(url)

    assert [name for name, one in found.items() if one.finding is not Finding.OK] == ["ledger disk"]
    assert "schema version" in found["ledger"].said
    assert "@" not in found["ledger"].said
    assert registered_substations(url) == ["north"]


async def test_another_speed_and_another_version_are_told(url, monkeypatch):
    monkeypatch.setenv("EVENLOAD_SPEED", "600")
    changed(url, "UPDATE meta SET value = '99' WHERE name = 'schema_version'")

    found = findings(url)

    assert [found[one].finding for one in ("ledger", "speed")] == [Finding.MISCONFIGURED] * 2
    assert "99, newer" in found["ledger"].said
    assert found["speed"].cure == "set EVENLOAD_SPEED=60, or name another database"


def test_an_empty_database_is_left_empty(postgres_url):
    assert findings(postgres_url)["ledger"].finding is Finding.NOTE
    assert registered_substations(postgres_url) == []
    assert asked(postgres_url, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []


def test_somebody_elses_database_is_told_so(postgres_url):
    changed(postgres_url, "CREATE TABLE meta (name text, value text)")

    found = findings(postgres_url)["ledger"]

    assert (found.finding, found.cure) == (Finding.MISCONFIGURED, "name another database")


def test_one_that_does_not_answer_is_a_problem(port):
    found = findings(f"postgresql://someone:do-not-print-me@127.0.0.1:{port}/evenload")["ledger"]

    assert found.finding is Finding.PROBLEM
    assert "do-not-print-me" not in found.said + found.cure
    assert registered_substations(f"postgresql://someone@127.0.0.1:{port}/evenload") == []


@pytest.mark.parametrize("url", ["postgresql://127.0.0.1:x/evenload", "mysql://127.0.0.1/evenload"])
def test_what_is_no_address_is_refused(url):
    assert findings(url)["ledger"].finding is Finding.MISCONFIGURED
