"""Clients try with the same key until they are answered, and what they were told is on disk."""

import asyncio
import collections
import contextlib
import os
import signal

import pytest
from aiohttp import web
from harness.chaos_clients import Share, client, send
from harness.chaos_segments import Segments

from services.clock import monotonic_s
from services.local.ports import free_ports

REQUESTS = 60


class Gateway:
    """Answers every request once with `fault`, then with one id for each key, and refuses key 7."""

    def __init__(self):
        self.fault = {"status": 503, "headers": {"Retry-After": "2"}, "text": "{}"}
        self.bodies = collections.defaultdict(list)
        self.withdrawn = []

    async def submit(self, request):
        key = request.headers["Idempotency-Key"]
        self.bodies[key].append(await request.json())
        if len(self.bodies[key]) == 1:
            return web.Response(**self.fault)
        if key == "chaos-7":
            return web.json_response({"title": "no"}, status=422)
        return web.json_response({"request_id": f"id-of-{key}"}, status=202)

    async def withdraw(self, request):
        self.withdrawn.append(request.match_info["id"])
        return web.json_response({"status": "cancelled"})


@contextlib.asynccontextmanager
async def gateway():
    [port] = free_ports(1)
    one, app = Gateway(), web.Application()
    app.add_routes([web.post("/charge-requests", one.submit), web.delete("/charge-requests/{id}", one.withdraw)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield one, f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_two_shares_are_the_whole_load_and_every_202_is_on_disk_once_it_was_told(tmp_path):
    async with gateway() as (one, url):
        figures = [
            await send(Share([url, url], str(tmp_path), 5, REQUESTS, 0.1, monotonic_s(), index, 2))
            for index in range(2)
        ]
    lines = [line.what for line in Segments(tmp_path, keep=False).end() if line.what is not None]
    told = [line for line in lines if line["event"] == "told"]
    keys = {f"chaos-{n}" for n in range(REQUESTS)}
    assert one.bodies.keys() == keys
    assert {line["key"] for line in told} == keys - {"chaos-7"}
    assert all(len({str(body) for body in bodies}) == 1 for bodies in one.bodies.values()), (
        "a retry is the same request"
    )
    for line in told:
        assert line["request_id"] == f"id-of-{line['key']}"
        assert line["energy_j"] == round(one.bodies[line["key"]][0]["energy_kwh"] * 3_600_000)
    assert len(told) > REQUESTS - 1, "some are sent to both gateways at once"
    assert sorted(one.withdrawn) == sorted(line["request_id"] for line in lines if line["event"] == "withdrawn") != []
    assert sum(one.told for one in figures) == REQUESTS - 1
    assert sum(one.retries for one in figures) >= REQUESTS
    [refused] = [words for one in figures for words in one.refused]
    assert refused == "chaos-7: 422 {'title': 'no'}"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 500, "text": "a fault of the gateway"}, "500 a fault of the gateway"),
        ({"status": 503, "text": "{}"}, "503 {}"),
        ({"status": 502, "body": b"<html>\xff"}, "502 <html>\N{REPLACEMENT CHARACTER}"),
        ({"status": 202, "text": '{"request_id": '}, '202 {"request_id": '),
    ],
)
async def test_a_fault_of_the_gateway_other_than_503_with_a_time_to_ask_again_is_told_and_asked_again(
    tmp_path, fault, words
):
    async with gateway() as (one, url):
        one.fault = fault
        figures = await send(Share([url], str(tmp_path), 5, 1, 0.0, monotonic_s()))
    assert figures.refused == [f"POST /charge-requests: {words}"]
    assert (figures.told, figures.refusals) == (1, 1)


async def noted_by_one_that_is_ended(tmp_path, name, ask):
    """What a client notes that asks a gateway which is away, and is ended after its first try."""
    [port] = free_ports(1)
    async with client([f"http://127.0.0.1:{port}"], tmp_path, name) as one:
        asking = asyncio.create_task(ask(one))
        async with asyncio.timeout(30):
            while not one.figures.retries:
                await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    [line] = [line.what for line in Segments(tmp_path, keep=False).end() if line.what is not None]
    return line


async def test_a_client_that_is_ended_while_it_asks_notes_its_key_as_given_up(tmp_path):
    line = await noted_by_one_that_is_ended(tmp_path, "probe", lambda one: one.submit("probe-1", {}, 36_000))
    assert (line["event"], line["key"]) == ("gave_up", "probe-1")


async def test_a_delete_is_noted_before_it_is_sent_because_its_answer_may_be_lost(tmp_path):
    line = await noted_by_one_that_is_ended(tmp_path, "client-0", lambda one: one.withdraw("id-1", 0))
    assert (line["event"], line["request_id"]) == ("withdrawing", "id-1")


async def test_a_share_has_the_same_load_however_many_processes_send_it(tmp_path):
    async with gateway() as (one, url):
        await send(Share([url], str(tmp_path), 5, 20, 0.1, monotonic_s()))
    async with gateway() as (other, url):
        for index in range(3):
            await send(Share([url], str(tmp_path), 5, 20, 0.1, monotonic_s(), index, 3))
    assert {key: bodies[0] for key, bodies in one.bodies.items()} == {
        key: bodies[0] for key, bodies in other.bodies.items()
    }


async def test_a_share_that_is_ended_early_tells_what_it_has(tmp_path):
    async with gateway() as (_, url):
        sending = asyncio.create_task(send(Share([url], str(tmp_path), 5, 1_000, 3_600.0, monotonic_s() - 3.7)))
        async with asyncio.timeout(30):
            while not any(tmp_path.glob("*.jsonl")):
                await asyncio.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        figures = await sending
    assert 0 < figures.told < 1_000
