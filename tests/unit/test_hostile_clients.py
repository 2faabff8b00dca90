"""Clients that leave, lie or send no HTTP: each gets problem details with a cure, never a 500; no trace is logged."""

import asyncio
import gzip
import json
import zlib
from http import HTTPStatus

import pytest
from harness.ledger import Ledger, opened
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from gateway.app import build_app
from gateway.health import ServiceRoutes
from gateway.http_server import serving
from gateway.intake import IntakeQueue
from gateway.load_view import LoadView
from gateway.metrics import OUTCOMES, GatewayMetrics
from gateway.settings import GatewaySettings
from services.admin import AdminServer
from services.errors import BrokerUnavailable

BODY = b'{"vehicle_id": "EV-1"}'
POST = b"POST /charge-requests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
WITHIN_S = 20


class NoBroker:
    async def publish_hints(self, exchange, routing_key, hints):
        raise BrokerUnavailable("away")


class Gateway:
    """A gateway on a port of its own."""

    def __init__(self, port, registry):
        self._port = port
        self._registry = registry

    def counted(self, outcome):
        return self._registry.get_sample_value("evenload_gateway_http_requests_total", {"outcome": outcome}) or 0

    async def until_counted(self, outcome, count):
        async with asyncio.timeout(WITHIN_S):
            while self.counted(outcome) < count:
                await asyncio.sleep(0.005)
        assert self.counted(outcome) == count

    async def send(self, data):
        """A connection that has sent this."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(data)
        await writer.drain()
        return reader, writer

    async def leave(self, data, *, reset):
        """Send this, wait until it has been read, and go."""
        _, writer = await self.send(data)
        if reset:
            writer.transport.abort()
        writer.close()

    async def ask(self, data):
        """Status, headers and body of the answer."""
        reader, writer = await self.send(data)
        async with asyncio.timeout(WITHIN_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").lower()
            lengths = [line.split()[1] for line in head.splitlines() if line.startswith("content-length:")]
            body = await reader.readexactly(int(lengths[0])) if lengths else b""
        writer.close()
        return int(head.split()[1]), head, json.loads(body or b"{}")


@pytest.fixture
async def gateway(tmp_path, port):
    settings, registry = GatewaySettings(port=port), CollectorRegistry()
    async with opened(tmp_path / "ledger.sqlite") as connection:
        ledger = Ledger(connection)
        intake, metrics = IntakeQueue(ledger.intake, NoBroker(), settings), GatewayMetrics(registry)
        view = LoadView()
        health = ServiceRoutes("gateway-1", AdminServer(registry), view, ledger.operating, http=None)
        app = build_app(
            ledger=ledger.intake, operating=ledger.operating, health=health, intake=intake, view=view, metrics=metrics,
            speed=60.0, settings=settings,
        )  # fmt: skip
        gathering = asyncio.create_task(intake.run())
        async with serving(app, settings, metrics):
            yield Gateway(port, registry)
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)


def whole(body, *headers, head=POST):
    return head + b"".join(one + b"\r\n" for one in headers) + CLOSE + b"Content-Length: %d\r\n\r\n" % len(body) + body


def get(target, *headers, method=b"GET"):
    return (
        method
        + b" "
        + target
        + b" HTTP/1.1\r\nHost: x\r\n"
        + b"".join(one + b"\r\n" for one in headers)
        + CLOSE
        + b"\r\n"
    )


@pytest.mark.parametrize("reset", [False, True], ids=["leaves", "resets"])
@pytest.mark.parametrize(
    "begun",
    [
        POST + b"Content-Length: 100\r\n\r\n" + BODY,
        POST + b"Content-Length: 1000000000000\r\n\r\n",
        POST + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"veh',
        POST + b"Content-Encoding: gzip\r\nContent-Length: 100\r\n\r\n" + gzip.compress(BODY),
        POST + b"Expect: 100-continue\r\nContent-Length: 22\r\n\r\n",
        POST.replace(b"/charge-requests", b"/request_charge") + b"Content-Length: 100\r\n\r\n{",
    ],
    ids=["half a body", "no body", "half a chunk", "half a compressed body", "after 100-continue", "original route"],
)
async def test_a_client_that_leaves_before_its_body_is_whole_has_an_outcome_of_its_own(gateway, begun, reset):
    with capture_logs() as logs:
        await gateway.leave(begun, reset=reset)
        await gateway.until_counted("client_gone", 1)

    assert logs == []
    assert [one for one in OUTCOMES if gateway.counted(one)] == ["client_gone"]


async def test_a_client_that_leaves_in_its_headers_or_says_nothing_is_no_request(gateway):
    with capture_logs() as logs:
        for begun in (POST, POST[:20], b""):
            await gateway.leave(begun, reset=False)
        assert (await gateway.ask(get(b"/substations")))[0] == HTTPStatus.OK

    assert (logs, [one for one in OUTCOMES if gateway.counted(one)]) == ([], ["200"])


async def test_a_client_that_leaves_before_its_answer_is_answered_all_the_same(gateway):
    with capture_logs() as logs:
        await gateway.leave(whole(BODY), reset=False)
        await gateway.until_counted("202", 1)

    assert [one["event"] for one in logs] == ["publish_left_to_the_ledger"]


async def test_a_body_that_never_comes_is_not_waited_for_for_ever(gateway, monkeypatch):
    monkeypatch.setattr("gateway.bodies.BODY_WITHIN_S", 0.1)
    status, _, problem = await gateway.ask(POST + b"Content-Length: 100\r\n\r\n{")

    assert (status, problem["detail"]) == (
        408, "the body did not arrive within 0.1 s: send all of it at once",
    )  # fmt: skip


@pytest.mark.parametrize("begun", [b"", POST[:30], POST], ids=["nothing", "half a header", "half the headers"])
async def test_an_idle_connection_is_closed(gateway, begun, monkeypatch):
    monkeypatch.setattr("gateway.http_server.KEEP_ALIVE_S", 0.1)
    reader, writer = await gateway.send(begun)
    async with asyncio.timeout(WITHIN_S):
        assert await reader.read() == b""
    writer.close()


CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
UNTYPED = b"POST /charge-requests HTTP/1.1\r\nHost: x\r\n"
BOMB = gzip.compress(b" " * 20_000_000)
ENCODING = "Content-Encoding: the gateway decodes gzip and deflate"
REFUSED = {
    "a byte order mark": (whole(b"\xef\xbb\xbf" + BODY), 400, "a byte order mark (BOM): send UTF-8 without one"),
    "UTF-16": (whole(BODY.decode().encode("utf-16")), 400, "it is not UTF-8 from byte 0 on: encode it as UTF-8"),
    "Latin-1": (whole(b'{"zone": "\xe9"}'), 400, "it is not UTF-8 from byte 10 on: encode it as UTF-8"),
    "an empty body": (whole(b""), 400, "it is empty: send JSON"),
    "a cut body": (whole(BODY[:-1]), 400, "(Expecting ',' delimiter: line 1, column 22): correct it there"),
    "a repeated member": (whole(b'{"a": 1, "a": 2}'), 400, "it has the member 'a' more than once: send it once"),
    "deep arrays": (whole(b"[" * 8_000), 400, "it is nested too deeply"),
    "deep objects": (whole(b'{"a":' * 2_700), 400, "it is nested too deeply"),
    "an endless integer": (whole(b'{"priority": ' + b"9" * 5_000 + b"}"), 400, "is too large: send one below 1e308"),
    "an endless float": (whole(b'{"energy_kwh": 1e999}'), 400, "the number 1e999 is too large: send one below 1e308"),
    "NaN": (whole(b'{"energy_kwh": NaN}'), 400, "NaN is no JSON number: send a finite one"),
    "half a surrogate pair": (whole(b'{"vehicle_id": "\\ud800"}'), 400, "surrogate pair: send whole characters"),
    "a large body": (whole(b" " * 16_385), 413, "16384 bytes"),
    "a large chunk": (CHUNKED + b"4001\r\n" + b" " * 16_385 + b"\r\n0\r\n\r\n", 413, "16384 bytes"),
    "a bomb": (whole(BOMB, b"Content-Encoding: gzip"), 413, "16384 bytes"),
    "a bad chunk": (CHUNKED + b"zz\r\n", 400, "chunk"),
    "broken gzip": (whole(b"nonsense", b"Content-Encoding: gzip"), 400, "is not encoded as Content-Encoding"),
    "broken deflate": (whole(b"nonsense", b"Content-Encoding: deflate"), 400, "is not encoded as Content-Encoding"),
    "brotli": (whole(BODY, b"Content-Encoding: br"), 415, ENCODING),
    "zstd": (whole(BODY, b"Content-Encoding: zstd"), 415, ENCODING),
    "an encoding that nobody knows": (whole(BODY, b"Content-Encoding: rot13"), 415, ENCODING),
    "no content type": (whole(BODY, head=UNTYPED), 415, "Content-Type"),
    "a broken content type": (whole(BODY, head=POST.replace(b"application/json", b"\xff;;=")), 415, "Content-Type"),
    "an expectation": (whole(BODY, b"Expect: the-unexpected"), 417, "Expect: send 100-continue"),
    "two lengths": (whole(BODY, b"Content-Length: 21"), 400, "Duplicate Content-Length"),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", 400, "Content-Length"),
    "length and chunks": (whole(BODY, b"Transfer-Encoding: chunked"), 400, "Transfer-Encoding"),
    "a long address": (get(b"/" + b"a" * 9_000), 400, "too long: send at most 8190 bytes"),
    "a long header": (get(b"/", b"X: " + b"a" * 70_000), 400, "too long: send at most 8190 bytes"),
    "many headers": (get(b"/", *(b"X%d: a" % number for number in range(5_000))), 400, "Too many headers"),
    "NUL in a header": (get(b"/", b"X: a\0b"), 400, "header value"),
    "NUL in the path": (get(b"/charge-requests/a\0b"), 400, "no sound address"),
    "an escaped NUL": (get(b"/charge-requests/a%00b"), 404, r"'a\x00b'"),
    "a broken escape": (get(b"/charge-requests/%zz"), 404, "'%zz'"),
    "no UTF-8 in the path": (get(b"/substations/%ff"), 404, "'%ff'"),
    "a broken address": (get(b"http://[/substations"), 400, "no sound address"),
    "TRACE": (get(b"/substations", method=b"TRACE"), 405, "TRACE is not offered here"),
    "CONNECT": (get(b"example.org:1", method=b"CONNECT"), 404, "there is nothing at this address"),
    "no method": (get(b"/", method=b"BREW"), 400, "no method that HTTP has"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40, 400, "without TLS"),
    "HTTP/3.7": (b"GET / HTTP/3.7\r\nHost: x\r\n\r\n", 400, "no sound HTTP/1.1"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "Missing 'Host' header"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "said"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_served_is_answered_with_a_cause_and_a_cure(gateway, sent, status, said):
    with capture_logs() as logs:
        answered, head, problem = await gateway.ask(sent)
        await gateway.until_counted(str(status), 1)

    assert (answered, problem["status"], problem["title"]) == (status, status, HTTPStatus(status).phrase)
    assert "content-type: application/problem+json" in head
    assert said in problem["detail"]
    assert logs == []


@pytest.mark.parametrize(
    "sent",
    [
        whole(gzip.compress(BODY), b"Content-Encoding: gzip"),
        whole(zlib.compress(BODY), b"Content-Encoding: deflate"),
        whole(BODY, head=POST.replace(b"json", b"json; charset=klingon")),  # JSON has no charset: it is UTF-8
        whole(BODY, head=POST.replace(b"HTTP/1.1", b"HTTP/1.0")),
    ],
    ids=["gzip", "deflate", "charset", "HTTP/1.0"],
)
async def test_what_is_only_unusual_is_served(gateway, sent):
    status, _, answer = await gateway.ask(sent)

    assert (status, answer["status"]) == (202, "accepted")
