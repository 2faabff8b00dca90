"""A gateway that says what a test tells it to, and remembers what it was asked."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

NO_ANSWER = (500, b"")
"""An answer that never arrives: the connection breaks."""


class FakeGateway:
    """Answers by method and path without the query; an answer is (status, body), bytes or JSON, or a list of them."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: dict[tuple[str, str], Any] = {}
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_route("*", "/{anything:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _answer(self, asked: web.Request) -> web.Response:
        body = await asked.json() if asked.can_read_body else None
        self.asked.append((asked.method, asked.raw_path, dict(asked.headers), body))
        nothing = (404, problem(404, f"there is nothing at {asked.raw_path}"))
        told = self.answers.get((asked.method, asked.path), nothing)
        if isinstance(told, list):
            told = told.pop(0) if len(told) > 1 else told[0]
        if told is NO_ANSWER:
            asked.transport.abort()
        status, content = told
        if isinstance(content, bytes):
            return web.Response(status=status, body=content, content_type="text/html")
        return web.json_response(content, status=status)


def problem(status: int, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": "", "status": status, "detail": detail}


def line(substation: str = "north", **changes: Any) -> dict[str, Any]:
    """A line of the load table."""
    return {
        "substation": substation, "zone": None, "status": "Operative", "demand_kw": 152.0, "limit_kw": 304.0,
        "power_kw": 152.0, "utilisation": 0.5, "sessions": 14, "connectors": 40, "in_flight": 2,
        "reading_age_s": 0.4, "fresh": True, **changes,
    }  # fmt: skip


def load_table(*lines: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "as_of": "2026-01-01T00:00:00.000Z", "age_s": 0.3, "balancer": "balancer-1", "items": list(lines),
        "requests": dict.fromkeys(
            ("accepted", "assigned", "charging", "completed", "stopped", "cancelled", "expired", "failed"), 0
        ), "requests_age_s": 0.5, **changes,
    }  # fmt: skip


def request(request_id: str = "r-1", status: str = "charging", **changes: Any) -> dict[str, Any]:
    """What the gateway tells of one request."""
    return {
        "request_id": request_id, "vehicle_id": "EV-1", "status": status, "substation": "north", "attempt": 1,
        "priority": 0, "zone": None, "max_power_kw": 11.0, "energy_requested_kwh": 10.0, "energy_delivered_kwh": 2.5,
        "depart_by": None, "wait_until": "2026-01-01T00:10:00.000Z", "accepted_at": "2026-01-01T00:00:00.000Z",
        "position": None, "expected_wait_s": None,
        "history": [
            {"at": "2026-01-01T00:00:00.000Z", "status": "accepted", "substation": None, "attempt": 0,
             "reason": "submitted"},
            {"at": "2026-01-01T00:00:01.000Z", "status": "charging", "substation": "north", "attempt": 1,
             "reason": "claimed"},
        ],
        "decision": None, **changes,
    }  # fmt: skip


@contextmanager
def fake_gateway() -> Iterator[FakeGateway]:
    """Serve on a free port, from a thread of its own, until the block ends."""
    loop = asyncio.new_event_loop()
    serving = threading.Thread(target=loop.run_forever, daemon=True)
    serving.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(20)

    gateway = FakeGateway()
    runner = run(gateway.start())
    try:
        yield gateway
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        serving.join()
        loop.close()
