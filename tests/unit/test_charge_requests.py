"""The routes of `/charge-requests`, asked over HTTP, on a real ledger."""

import asyncio

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer
from harness.ledger import Ledger, opened, registration
from prometheus_client import CollectorRegistry

from gateway.app import build_app
from gateway.health import ServiceRoutes
from gateway.intake import IntakeQueue
from gateway.load_view import LoadView
from gateway.metrics import GatewayMetrics
from gateway.settings import GatewaySettings
from services.admin import AdminServer
from services.errors import BrokerUnavailable
from services.ledger.records import Assignment
from services.messages import Hint

BODY = {"vehicle_id": "EV-1", "energy_kwh": 22}


class Publisher:
    """A broker that is away: the routes need none."""

    async def publish_hints(self, exchange, routing_key, hints):
        raise BrokerUnavailable("away")


@pytest.fixture
async def ledger(tmp_path):
    async with opened(tmp_path / "ledger.sqlite") as connection:
        yield Ledger(connection)


@pytest.fixture
async def gateway(ledger):
    settings = GatewaySettings()
    intake = IntakeQueue(ledger.intake, Publisher(), settings)
    view, http = LoadView(), aiohttp.ClientSession()
    app = build_app(
        ledger=ledger.intake,
        operating=ledger.operating,
        intake=intake,
        view=view,
        health=ServiceRoutes("gateway-1", AdminServer(CollectorRegistry()), view, ledger.operating, http),
        metrics=GatewayMetrics(CollectorRegistry()),
        speed=60.0,
        settings=settings,
    )
    gathering = asyncio.create_task(intake.run())
    async with http, TestClient(TestServer(app)) as client:
        yield client
    gathering.cancel()
    await asyncio.gather(gathering, return_exceptions=True)


async def post(gateway, body, key=None):
    """Status, address of the request, and the whole answer."""
    headers = {} if key is None else {"Idempotency-Key": key}
    async with gateway.post("/charge-requests", json=body, headers=headers) as response:
        return response.status, response.headers.get("Location"), await response.json()


async def how_many(ledger):
    return sum((await ledger.intake.counts()).values())


async def test_the_same_key_with_the_same_body_is_the_same_request(gateway, ledger):
    first = await post(gateway, BODY, "k")

    assert first[0] == 202
    assert await post(gateway, BODY, "k") == first
    assert await how_many(ledger) == 1


async def test_the_same_wishes_written_otherwise_are_the_same_body(gateway, ledger):
    first = await post(gateway, BODY, "k")

    assert await post(gateway, {"priority": 0, "energy_kwh": 22.0, "zone": None, **BODY}, "k") == first
    assert await how_many(ledger) == 1


@pytest.mark.parametrize("change", [{"energy_kwh": 23}, {"vehicle_id": "EV-2"}, {"zone": "west"}, {"priority": 1}])
async def test_a_used_key_with_another_body_is_refused_and_accepts_nothing(gateway, ledger, change):
    await post(gateway, BODY, "k")

    status, location, problem = await post(gateway, BODY | change, "k")

    assert (status, location) == (422, None)
    assert "'k' was used for another body" in problem["detail"]
    assert await how_many(ledger) == 1


async def test_without_a_key_or_with_another_one_each_is_a_request_of_its_own(gateway, ledger):
    answers = [await post(gateway, BODY, key) for key in (None, None, "k", "l")]

    assert [status for status, _, _ in answers] == [202] * 4
    assert len({location for _, location, _ in answers}) == await how_many(ledger) == 4


@pytest.mark.parametrize("keys", [["two words"], [""], ["x" * 256], ["a", "b"]])
async def test_what_cannot_be_a_key_is_refused(gateway, ledger, keys):
    headers = [("Idempotency-Key", key) for key in keys]

    async with gateway.post("/charge-requests", json=BODY, headers=headers) as response:
        assert response.status == 400
    assert await how_many(ledger) == 0


async def test_an_accepted_request_is_found_at_its_location(gateway):
    _, location, accepted = await post(gateway, BODY)

    async with gateway.get(location) as response:
        found = await response.json()

    assert (response.status, found["status"], found["vehicle_id"]) == (200, "accepted", "EV-1")
    assert found["request_id"] == accepted["request_id"]
    assert location == f"/charge-requests/{accepted['request_id']}"


async def test_a_withdrawal_tells_whether_the_request_has_ended_or_its_session_is_still_to_stop(gateway, ledger):
    await ledger.take(registration("north"))
    _, waits, _ = await post(gateway, BODY)
    _, charges, charging = await post(gateway, BODY)
    request_id = charging["request_id"]
    await ledger.dispatch.assign([Assignment(request_id, 0, "north")])
    assert len(await ledger.claim([Hint(request_id, 1)], "north", 1)) == 1

    answers = []
    for location in (waits, waits, charges, "/charge-requests/nobody"):
        async with gateway.delete(location) as response:
            answers.append((response.status, (await response.json())["status"]))

    assert answers == [(200, "cancelled"), (200, "cancelled"), (202, "charging"), (404, 404)]
