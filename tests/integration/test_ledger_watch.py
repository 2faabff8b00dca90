"""A process that uses its ledger seldom: `/readyz` tells at once that it is lost or replaced, and that it is back."""

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest
from harness.ledger import Ledger, changed, opened
from harness.postgres import PASSWORD, fresh_database
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services import backends
from services.admin import AdminServer
from services.backends import ledger_opened
from services.errors import LedgerUnavailable
from services.ledger.provision import provision
from services.lifecycle import Life
from services.metrics import ServiceMetrics
from services.settings import CommonSettings

PATIENCE_S = 30


@pytest.fixture
def url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}"
        return
    with fresh_database(request.getfixturevalue("postgres"), with_ledger=True) as one:
        yield one


@contextlib.asynccontextmanager
async def idle_service(url, name="balancer"):
    """A service that opens its ledger and does nothing with it; yields what asks its `/readyz`, and the ledger."""
    registry = CollectorRegistry()
    common = CommonSettings(amqp_url="amqp://u:p@127.0.0.1/v", ledger_url=url)
    life = Life(name, f"{name}-1", common, ServiceMetrics(name, registry), AdminServer(registry))
    await life.admin.start("127.0.0.1", None)
    try:
        async with ledger_opened(life) as ledger, aiohttp.ClientSession() as http:
            life.admin.ready = True

            async def readiness():
                async with http.get(f"{life.admin.url}/readyz") as answer:
                    return answer.status, await answer.text()

            yield readiness, Ledger(ledger)
    finally:
        await life.admin.stop()


async def until_ready_is(readiness, status):
    async with asyncio.timeout(PATIENCE_S):
        while (found := await readiness())[0] != status:
            await asyncio.sleep(0.02)
    return found[1]


@pytest.fixture
def ways(url, request):
    """How to take the ledger away, how to bring it back, and what is told meanwhile."""
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        gone = path.with_name("gone")
        return lambda: path.rename(gone), lambda: gone.rename(path), f"{path} is gone: put the right one back"
    server, name = request.getfixturevalue("postgres"), url.rpartition("/")[2]

    def run(*statements):
        for statement in statements:
            server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE '{name}%'")
            server.execute(statement)

    return (
        lambda: run(f"ALTER DATABASE {name} RENAME TO {name}_kept", f"CREATE DATABASE {name}"),
        lambda: run(f"DROP DATABASE {name} WITH (FORCE)", f"ALTER DATABASE {name}_kept RENAME TO {name}"),
        f"{url.rpartition('@')[2]} holds no ledger any more: put the right one back",
    )


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_an_idle_process_is_unready_while_its_ledger_is_lost_and_ready_when_it_is_back(url, ways):
    lose, find, cause = ways
    async with opened(url) as connection:
        await Ledger(connection).accepted("first")
    with capture_logs() as logs:
        async with idle_service(url) as (readiness, _):
            assert await readiness() == (200, "ready\n")
            lose()
            said = await until_ready_is(readiness, 503)
            assert said.startswith(f"not ready: the ledger cannot be written: {cause}")
            find()
            await until_ready_is(readiness, 200)

    events = [one for one in logs if one["event"] != "ledger_not_synced"]  # as the tests' own server is not
    assert [one["event"] for one in events] == ["ledger_opened", "ledger_lost", "ledger_returned"]
    assert events[0]["place"] in url


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_a_gateway_that_may_not_accept_stays_unready_though_it_may_write_elsewhere(url, monkeypatch):
    monkeypatch.setattr(backends, "LOOK_EVERY_S", 0.005)
    changed(url, provision({"gateway": PASSWORD}))
    async with idle_service(url.replace("postgres:", "evenload_gateway:"), "gateway") as (readiness, ledger):
        changed(url, "REVOKE INSERT ON request FROM evenload_gateway")
        with pytest.raises(LedgerUnavailable):
            await ledger.accepted("a")
        expected = 503, "not ready: the ledger cannot be written: PostgreSQL: permission denied for table request\n"
        assert {await readiness() for _ in range(100)} == {expected}

        changed(url, provision({"gateway": PASSWORD}))
        await until_ready_is(readiness, 200)
        await ledger.accepted("a")
