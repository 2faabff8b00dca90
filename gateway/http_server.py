"""The gateway's HTTP port: what reaches no handler is answered as problem details, too, counted, and logged nowhere."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from http import HTTPStatus

from aiohttp import http_exceptions, web
from aiohttp.web_protocol import RequestHandler

from gateway.metrics import GatewayMetrics
from gateway.problems import CLIENT_GONE, OUR_FAULT, problem_response
from gateway.settings import GatewaySettings
from services.admin import KEEP_ALIVE_S, bind
from services.logs import get_logger

log = get_logger(__name__)

DRAIN_S = 5.0
ENCODINGS = "Content-Encoding: the gateway decodes gzip and deflate; send one of these, or the body as it is"
FAULTS: dict[type[Exception], tuple[HTTPStatus, str]] = {
    http_exceptions.LineTooLong: (
        HTTPStatus.BAD_REQUEST,
        "the address or a header field is too long: send at most 8190 bytes in each",
    ),
    http_exceptions.BadHttpMethod: (
        HTTPStatus.BAD_REQUEST,
        "the request line begins with no method that HTTP has: send HTTP/1.1, without TLS",
    ),
    http_exceptions.InvalidURLError: (
        HTTPStatus.BAD_REQUEST,
        "the request line has no sound address: send a path like /charge-requests",
    ),
    http_exceptions.TransferEncodingError: (
        HTTPStatus.BAD_REQUEST,
        "the body's chunks are malformed: send the length of each in hexadecimal",
    ),
    http_exceptions.ContentEncodingError: (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, ENCODINGS),
}
"""Status, cause and cure for what is no HTTP, or breaks its bounds."""


@contextlib.asynccontextmanager
async def serving(app: web.Application, settings: GatewaySettings, metrics: GatewayMetrics) -> AsyncIterator[None]:
    """Serve the API while the block runs; raises `Misconfigured` where the port cannot be had."""
    runner = _Runner(app, metrics)
    await runner.setup()
    try:
        await bind(runner, settings.host, settings.port, "EVENLOAD_GATEWAY_PORT")
        yield
    finally:
        await runner.cleanup()


class _Runner(web.AppRunner):
    """aiohttp's runner, with connections of ours."""

    __slots__ = ("_metrics",)

    def __init__(self, app: web.Application, metrics: GatewayMetrics) -> None:
        super().__init__(app, handle_signals=False, shutdown_timeout=DRAIN_S)
        self._metrics = metrics

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._metrics)


class _Server(web.Server):
    """Makes a `_Connection` for each client, and answers what aiohttp refuses before any middleware is asked."""

    def __init__(self, made: web.Server, metrics: GatewayMetrics) -> None:
        super().__init__(self._answer, request_factory=made.request_factory)
        self._application = made.request_handler
        self._metrics = metrics

    def __call__(self) -> RequestHandler:
        return _Connection(self, self._metrics)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Content-Encoding", "identity").lower() not in ("identity", "gzip", "deflate"):
            response = problem_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, ENCODINGS)
        else:
            try:
                return await self._application(request)
            except web.HTTPExpectationFailed:
                response = problem_response(
                    HTTPStatus.EXPECTATION_FAILED, "Expect: send 100-continue, or no such header"
                )
            except ConnectionError:  # it left before it was told to continue
                self._metrics.http_requests.labels(CLIENT_GONE).inc()
                return web.Response(status=HTTPStatus.BAD_REQUEST)
        self._metrics.http_requests.labels(str(response.status)).inc()
        return response


class _Connection(RequestHandler):
    """One client's connection. By itself aiohttp would answer what it cannot read in words of its own, with a trace."""

    __slots__ = ("_metrics",)

    def __init__(self, server: web.Server, metrics: GatewayMetrics) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # aiohttp itself says None for no log
            keepalive_timeout=KEEP_ALIVE_S,
        )
        self._metrics = metrics

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 (aiohttp's words)
    ) -> web.StreamResponse:
        """The answer to a request that no handler was given; the connection is closed after it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has been begun, so that no other can be sent")
        if status == HTTPStatus.BAD_REQUEST:
            status, detail = _told(exc)
        else:
            log.error("request_failed", path=request.path, exc_info=exc)
            status, detail = HTTPStatus.INTERNAL_SERVER_ERROR, OUR_FAULT
        self._metrics.http_requests.labels(str(int(status))).inc()
        response = problem_response(status, detail)
        response.force_close()
        return response


def _told(fault: BaseException | None) -> tuple[HTTPStatus, str]:
    for kind, answer in FAULTS.items():
        if isinstance(fault, kind):
            return answer
    words = str(getattr(fault, "message", "")).splitlines() or ["it cannot be read"]
    return HTTPStatus.BAD_REQUEST, f"the request is no sound HTTP/1.1 ({words[0].strip(' :.')[:120]}): correct it"
