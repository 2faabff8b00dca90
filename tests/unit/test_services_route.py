"""`/services`, and the doctor's look at it: every process that the gateway knows, and why it is not ready."""

import contextlib

import aiohttp
import pytest
from aiohttp import web
from harness.fake_gateway import fake_gateway
from harness.ledger import Ledger, registration
from prometheus_client import CollectorRegistry

from gateway.health import ServiceRoutes
from gateway.load_view import LoadView
from services.admin import AdminServer
from services.cli.checks import Finding
from services.cli.checks_services import check_services
from services.errors import LedgerUnavailable

NOWHERE = "http://127.0.0.1:1"


@contextlib.asynccontextmanager
async def admin_port():
    """The admin port of a process that is ready."""
    admin = AdminServer(CollectorRegistry())
    await admin.start("127.0.0.1", None)
    admin.ready = True
    try:
        yield admin
    finally:
        await admin.stop()


async def told(ledger, view=None, fault=None, degradation=None):
    """What the route answers of a gateway with this fault, and of one that must do without something."""
    own = AdminServer(CollectorRegistry())
    own.faults.append(lambda: fault)
    own.degradations.append(lambda: degradation)
    async with aiohttp.ClientSession() as http:
        routes = ServiceRoutes("gateway-1", own, view or LoadView(), ledger, http)
        app = web.Application()
        app.router.add_get("/services", routes.get)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with http.get(f"http://127.0.0.1:{runner.addresses[0][1]}/services") as response:
                return (await response.json())["items"]
        finally:
            await runner.cleanup()


def line(service, name, *causes):
    return {"service": service, "name": name, "ready": not causes, "causes": list(causes)}


def heard(*causes):
    view = LoadView()
    view.take({"as_of_ms": 1_000, "source": "balancer-1", "causes": list(causes), "substations": []})
    return view


async def test_services_that_are_ready_have_no_causes(ledger: Ledger):
    async with admin_port() as admin:
        await ledger.take(registration("east", metrics_url=admin.url), registration("west", metrics_url=admin.url))
        items = await told(ledger.operating, heard())

    assert items == [line("gateway", "gateway-1"), line("balancer", "balancer-1"), line("substations", "east, west")]


async def test_each_service_that_is_not_ready_says_why(ledger: Ledger):
    async with admin_port() as admin:
        admin.faults.append(lambda: "its queue is gone: run `evenload mend`")
        await ledger.take(registration("east", metrics_url=admin.url))
        items = await told(ledger.operating, heard("the broker is away"), "the ledger cannot be written")

    assert items == [
        line("gateway", "gateway-1", "the ledger cannot be written"),
        line("balancer", "balancer-1", "the broker is away"),
        line("substations", "east", "its queue is gone: run `evenload mend`"),
    ]


async def test_a_gateway_that_does_without_the_broker_is_ready_and_says_so(ledger: Ledger):
    [own] = await told(ledger.operating, degradation="the broker is away")
    assert own == {"service": "gateway", "name": "gateway-1", "ready": True, "causes": ["the broker is away"]}


async def test_a_process_that_does_not_answer_is_told_with_its_address(ledger: Ledger):
    await ledger.take(registration("east", metrics_url=NOWHERE))
    [_, silent] = await told(ledger.operating)

    assert (silent["name"], silent["ready"]) == ("east", False)
    assert silent["causes"][0].startswith(f"it does not answer at {NOWHERE} (")


async def test_a_process_that_has_not_begun_to_serve_is_told_as_not_ready(ledger: Ledger):
    async with admin_port() as admin:
        admin.ready = False
        await ledger.take(registration("east", metrics_url=admin.url))
        assert (await told(ledger.operating))[1:] == [line("substations", "east", "not ready")]


async def test_without_the_ledger_the_gateway_tells_of_itself_and_of_the_balancers():
    class Away:
        async def metrics_addresses(self):
            raise LedgerUnavailable("no answer within 5 s")

    items = await told(Away(), heard())
    cause = "the ledger cannot be read: no answer within 5 s"
    assert items == [line("gateway", "gateway-1", cause), line("balancer", "balancer-1")]


async def test_a_balancer_that_has_fallen_silent_is_told_and_later_forgotten(monkeypatch):
    class Empty:
        async def metrics_addresses(self):
            return {}

    view = heard()
    began_s = view.balancers()["balancer-1"].at_s

    def later(seconds):
        monkeypatch.setattr("gateway.health.monotonic_s", lambda: began_s + seconds)
        monkeypatch.setattr("gateway.load_view.monotonic_s", lambda: began_s + seconds)

    later(4.9)
    assert (await told(Empty(), view))[1:] == [line("balancer", "balancer-1")]
    later(7)
    assert (await told(Empty(), view))[1:] == [line("balancer", "balancer-1", "it has told nothing for 7 s")]
    later(61)
    assert (await told(Empty(), view))[1:] == []


async def test_the_doctor_repeats_what_each_service_lacks():
    with fake_gateway() as gateway:
        items = [line("gateway", "gateway-1"), line("balancer", "balancer-1", "this", "that")]
        gateway.answers["GET", "/services"] = (200, {"items": items})
        found = await check_services(gateway.url, None)

    assert [(one.check, one.finding, one.said) for one in found] == [
        ("services", Finding.PROBLEM, "balancer balancer-1: this"),
        ("services", Finding.PROBLEM, "balancer balancer-1: that"),
    ]


async def test_the_doctor_finds_services_well_that_are_ready():
    with fake_gateway() as gateway:
        items = [line("gateway", "gateway-1"), line("substations", "east, west")]
        gateway.answers["GET", "/services"] = (200, {"items": items})
        [found] = await check_services(gateway.url, None)

    assert (found.finding, found.said) == (Finding.OK, "ready: gateway gateway-1, substations east, west")


@pytest.mark.parametrize("answer", [{"items": [{"service": "gateway"}]}, {"items": "none"}, {}])
async def test_without_a_gateway_that_tells_the_services_are_unknown(answer):
    with fake_gateway() as gateway:
        gateway.answers["GET", "/services"] = (200, answer)
        [found] = await check_services(gateway.url, None)
    assert found.finding is Finding.NOTE
    [found] = await check_services(NOWHERE, None)
    assert found.finding is Finding.NOTE
