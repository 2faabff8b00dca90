"""Who is told to Prometheus: every process that hosts a substation, until it has left in order."""

import contextlib

import aiohttp
from aiohttp import web
from harness.ledger import Ledger, opened, registration
from prometheus_client import CollectorRegistry

from gateway.metrics import GatewayMetrics
from gateway.problems import problem_details
from gateway.targets import TargetRoutes
from services.ledger.leases import Lease
from services.ledger.records import Beat

HERE, THERE = "http://127.0.0.1:1", "http://127.0.0.1:2"


async def lease(ledger: Ledger, substation: str) -> Lease:
    return next(one for one in await ledger.sweeping.leases() if one.substation == substation)


async def release(ledger: Ledger, substation: str, epoch: int = 1) -> None:
    holder = (await lease(ledger, substation)).holder
    assert await ledger.tenancy.release([Beat(substation, epoch, holder, (), (), 0)]) == {substation}


async def test_a_process_is_told_once_with_all_that_it_hosts(ledger):
    await ledger.take(registration("east", metrics_url=THERE))

    assert await ledger.operating.metrics_addresses() == {THERE: ["east"], HERE: ["north", "south"]}


async def test_who_leaves_in_order_is_told_no_more_also_after_the_sweep_has_given_it_up(ledger):
    await release(ledger, "north")
    assert await ledger.operating.metrics_addresses() == {HERE: ["south"]}

    await ledger.sweeping.lose([await lease(ledger, "north")])
    assert await ledger.operating.metrics_addresses() == {HERE: ["south"]}

    await ledger.take(registration("north", metrics_url=THERE))
    assert await ledger.operating.metrics_addresses() == {THERE: ["north"], HERE: ["south"]}


async def test_who_is_silent_is_told_on_until_somebody_takes_its_place(ledger):
    await ledger.sweeping.lose([await lease(ledger, "north")])
    assert await ledger.operating.metrics_addresses() == {HERE: ["north", "south"]}

    await ledger.take(registration("north", metrics_url=THERE))
    assert await ledger.operating.metrics_addresses() == {THERE: ["north"], HERE: ["south"]}


@contextlib.asynccontextmanager
async def served(ledger: Ledger):
    """The route alone, at an address."""
    app = web.Application(middlewares=[problem_details(GatewayMetrics(CollectorRegistry()))])
    app.router.add_get("/targets", TargetRoutes(ledger.operating).get)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/targets"
    finally:
        await runner.cleanup()


async def test_the_route_answers_as_prometheus_wants_it(ledger):
    async with served(ledger) as url, aiohttp.ClientSession() as http, http.get(url) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        assert await response.json() == [
            {"targets": ["127.0.0.1:1"], "labels": {"__meta_evenload_substations": "north,south"}}
        ]


async def test_without_any_substation_the_list_is_empty_but_there(path):
    async with (
        opened(path) as connection,
        served(Ledger(connection)) as url,
        aiohttp.ClientSession() as http,
        http.get(url) as response,
    ):
        assert (response.status, await response.json()) == (200, [])


async def test_a_ledger_that_cannot_be_read_is_a_503_so_that_prometheus_keeps_its_list(ledger, execute):
    execute("ALTER TABLE substation RENAME TO gone")
    try:
        async with served(ledger) as url, aiohttp.ClientSession() as http, http.get(url) as response:
            assert (response.status, response.content_type) == (503, "application/problem+json")
            assert (await response.json())["status"] == 503
    finally:
        execute("ALTER TABLE gone RENAME TO substation")
