"""Errors as RFC 9457 problem details, for every route and every fault, the framework's own included."""

import json
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from gateway.intake import Backlogged
from gateway.metrics import GatewayMetrics
from services.errors import LedgerRefused, LedgerUnavailable
from services.logs import get_logger

log = get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RETRY_AFTER_S = "2"
REFUSED_BY_LEDGER = "urn:evenload:problem:refused-by-ledger"
"""The type of the problem that a rule of the operator's database forbids a request."""
OUR_FAULT = "a fault of the gateway; its log tells more"
CLIENT_GONE = "client_gone"
"""The outcome of a request whose client left before it had sent all of it: no status, because nobody reads one."""


class Problem(Exception):
    """A fault of the request: its status, what is wrong, and members that say where."""

    def __init__(self, status: HTTPStatus, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.members = members


class ClientGone(Exception):
    """The client broke the connection before its request was whole: nothing was done, and nobody can be told."""


def problem_response(status: int, detail: str, headers: dict[str, str] | None = None, **members: Any) -> web.Response:
    """An `application/problem+json` answer."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **members}
    return web.Response(
        status=status, body=json.dumps(body).encode(), content_type="application/problem+json", headers=headers
    )


def problem_details(metrics: GatewayMetrics) -> Middleware:
    """A middleware that answers every fault as problem details, and counts every answer."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        try:
            response = await _answer(request, handler)
        except ClientGone:
            metrics.http_requests.labels(CLIENT_GONE).inc()
            return web.Response(status=HTTPStatus.BAD_REQUEST)
        metrics.http_requests.labels(str(response.status)).inc()
        if response.status == HTTPStatus.ACCEPTED and request.method == "POST":
            metrics.accept_s.observe(time.perf_counter() - started)
        return response

    return answer


async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:  # noqa: PLR0911 (a table)
    try:
        return await handler(request)
    except ClientGone:
        raise
    except Problem as problem:
        return problem_response(problem.status, problem.detail, **problem.members)
    except LedgerRefused as error:
        log.warning("request_refused", path=request.path, code=error.code, cause=str(error))
        return problem_response(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"a rule of the ledger's database forbids this request ({error.code}); sending it again will not help",
            type=REFUSED_BY_LEDGER,
        )
    except (LedgerUnavailable, Backlogged) as error:
        log.warning("request_refused", path=request.path, cause=str(error) or "backlog full")
        return problem_response(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "the ledger did not confirm in time; send it again, under the same Idempotency-Key if it has one",
            {"Retry-After": RETRY_AFTER_S},
        )
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        return problem_response(
            error.status, f"{request.method} is not offered here, only {allowed}", {"Allow": allowed}
        )
    except web.HTTPNotFound:
        return problem_response(HTTPStatus.NOT_FOUND, f"there is nothing at {request.path or 'this address'}")
    except web.HTTPException as error:
        return problem_response(error.status, error.text or error.reason)
    except Exception as error:  # the client must get problem details, the log the trace
        log.error("request_failed", path=request.path, exc_info=error)
        return problem_response(HTTPStatus.INTERNAL_SERVER_ERROR, OUR_FAULT)
