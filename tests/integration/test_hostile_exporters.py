"""Failure 19: what answers at a substation's address may do anything; its reading is rejected, and nobody waits."""

import asyncio
import contextlib

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from balancer.metrics import BalancerMetrics
from balancer.readings import METRIC_NAMES
from balancer.scraper import SCRAPE_MAX_BYTES, Scraper


async def hang(_request):
    await asyncio.sleep(600)


async def stream_for_ever(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"# " + b"x" * 65_534)
    return response


async def drip(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"#")
            await asyncio.sleep(0.1)
    return response


async def redirect(_request):
    raise web.HTTPFound("/elsewhere")


def text(content):
    async def answer(_request):
        return web.Response(text=content)

    return answer


elsewhere = text("".join(f'{name}{{substation="north"}} 1\n' for name in METRIC_NAMES))
"""A sound answer, so that a redirect that is followed brings a reading."""

ANSWERS = {
    "hangs": (hang, "failed"),
    "streams": (stream_for_ever, "rejected"),
    "drips": (drip, "failed"),
    "redirects": (redirect, "rejected"),
    "html": (text("<html><body>It works!</body></html>"), "rejected"),
    "nan": (text('evenload_substation_power_watts{substation="north"} NaN\n'), "rejected"),
    "negative": (text('evenload_substation_power_watts{substation="north"} -1\n'), "rejected"),
    "nothing": (text(""), "rejected"),
}


@pytest.mark.parametrize(("answer", "result"), ANSWERS.values(), ids=ANSWERS)
async def test_failure_19_a_hostile_exporter_is_rejected_as_a_whole(answer, result):
    app = web.Application()
    app.add_routes([web.get("/metrics", answer), web.get("/elsewhere", elsewhere)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    registry = CollectorRegistry()
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(30):
            scraper = Scraper(http, 1.0, BalancerMetrics(registry).scrapes, lambda *_: None)
            readings = await scraper.scrape(f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()

    assert readings == {}
    counted = registry.get_sample_value("evenload_balancer_scrapes_total", {"result": result})
    assert counted == 1, f"not {result}; at most {SCRAPE_MAX_BYTES} bytes are read"
