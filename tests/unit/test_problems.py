import json
from http import HTTPStatus

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway.bodies import field_problem
from gateway.intake import Backlogged
from gateway.metrics import GatewayMetrics
from gateway.problems import Problem, problem_details
from services.errors import LedgerRefused, LedgerUnavailable


class FakeRequest:
    """What the middleware needs of a request."""

    def __init__(self, method="POST", path="/charge-requests"):
        self.method = method
        self.path = path


class Gateway:
    """The middleware around a handler that raises or returns what a test wants."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self._middleware = problem_details(GatewayMetrics(self.registry))

    async def answer(self, outcome, request=None):
        async def handler(_request):
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return await self._middleware(request or FakeRequest(), handler)

    def counted(self, outcome):
        return self.registry.get_sample_value("evenload_gateway_http_requests_total", {"outcome": outcome}) or 0


@pytest.fixture
def gateway():
    return Gateway()


def details(response):
    assert response.content_type == "application/problem+json"
    body = json.loads(response.body)
    assert body["status"] == response.status
    assert body["title"] == HTTPStatus(response.status).phrase
    assert body["type"] == "about:blank"
    return body


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Problem(HTTPStatus.BAD_REQUEST, "why"), 400),
        (Problem(HTTPStatus.NOT_FOUND, "why"), 404),
        (web.HTTPNotFound(), 404),
        (web.HTTPMethodNotAllowed("PUT", ["POST", "GET"]), 405),
        (web.HTTPRequestEntityTooLarge(16_384, 16_385), 413),
        (web.HTTPBadRequest(text="why"), 400),
        (LedgerUnavailable("locked"), 503),
        (Backlogged(), 503),
        (RuntimeError("secret of the house"), 500),
        (KeyError("x"), 500),
    ],
)
async def test_every_fault_becomes_problem_details_and_is_counted(gateway, fault, status):
    response = await gateway.answer(fault)

    assert response.status == status
    assert details(response)["detail"]
    assert gateway.counted(str(status)) == 1


async def test_a_field_fault_carries_its_field(gateway):
    body = details(await gateway.answer(field_problem("energy_kwh", "must be more than 0")))

    assert body["errors"] == [{"field": "energy_kwh", "detail": "must be more than 0"}]
    assert body["detail"] == "energy_kwh: must be more than 0"


@pytest.mark.parametrize("fault", [LedgerUnavailable("locked"), Backlogged()])
async def test_who_cannot_be_served_now_is_told_when_to_come_back(gateway, fault):
    response = await gateway.answer(fault)

    assert int(response.headers["Retry-After"]) > 0


async def test_what_the_database_forbids_is_a_problem_of_its_own_that_no_retry_mends(gateway):
    response = await gateway.answer(LedgerRefused("PostgreSQL: secret of the row", "23514"))

    assert response.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert "Retry-After" not in response.headers
    assert json.loads(response.body) == {
        "type": "urn:evenload:problem:refused-by-ledger",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": "a rule of the ledger's database forbids this request (23514); sending it again will not help",
    }


async def test_a_wrong_method_is_told_the_right_ones(gateway):
    response = await gateway.answer(web.HTTPMethodNotAllowed("PUT", ["POST", "GET"]), FakeRequest("PUT"))

    assert response.headers["Allow"] == "GET, POST"
    assert "PUT" in details(response)["detail"]


async def test_a_crash_tells_the_client_nothing_of_its_inside(gateway):
    response = await gateway.answer(RuntimeError("secret of the house"))

    assert b"secret" not in response.body


async def test_an_answer_passes_unchanged_and_only_accepted_posts_are_timed(gateway):
    accepted = web.Response(status=202)

    assert await gateway.answer(accepted) is accepted
    await gateway.answer(web.Response(status=202), FakeRequest("GET"))
    await gateway.answer(web.Response(status=200))
    await gateway.answer(Problem(HTTPStatus.BAD_REQUEST, "why"))

    assert gateway.registry.get_sample_value("evenload_gateway_accept_duration_seconds_count") == 1
    assert (gateway.counted("202"), gateway.counted("200"), gateway.counted("400")) == (2, 1, 1)
