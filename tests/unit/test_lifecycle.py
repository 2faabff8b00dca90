"""The life of a service from its settings to its exit code, and when it is ready."""

import asyncio
import json
import os
import signal
from functools import partial

import pytest
from harness.in_process import run_to_end
from prometheus_client import CollectorRegistry

from gateway.settings import GatewaySettings
from services.admin import AdminServer
from services.errors import BrokerUnavailable, LedgerUnavailable, Misconfigured
from services.lifecycle import Life, run
from services.metrics import ServiceMetrics
from services.settings import CommonSettings


async def test_a_service_is_ready_until_it_is_told_to_end_and_unready_before_it_drains():
    registry = CollectorRegistry()
    common = CommonSettings(amqp_url="amqp://u:p@127.0.0.1/v", ledger_url="sqlite:///x")
    life = Life("gateway", "gateway-1", common, ServiceMetrics("gateway", registry), AdminServer(registry))
    assert not life.admin.ready

    serving = asyncio.create_task(life.serve_until_stopped())
    await asyncio.sleep(0)
    assert life.admin.ready
    life.stopping.set()
    await serving

    assert not life.admin.ready


@pytest.fixture
def ended(capfd):
    """Runs a service that does nothing but `serve`, and tells how it ended."""
    needed = {"EVENLOAD_AMQP_URL": "amqp://u:p@127.0.0.1/v", "EVENLOAD_LEDGER_URL": "sqlite:///x"}
    return lambda serve, **more: run_to_end(partial(run, "gateway", GatewaySettings, serve), needed | more, capfd)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_a_signal_ends_drains_and_exits_with_0(ended, signum):
    async def serve(life, _settings):
        os.kill(os.getpid(), signum)
        await life.serve_until_stopped()

    told = ended(serve)

    assert (told.code, told.errors) == (0, "")
    assert 0 < told.output.find("drain_started") < told.output.find("service_drained")


def test_a_service_serves_at_its_own_port_beside_variables_of_kubernetes_and_logs_their_names(ended):
    async def serve(life, settings):
        assert settings.port == 8080
        life.stopping.set()
        await life.serve_until_stopped()

    links = {"EVENLOAD_GATEWAY_PORT": "tcp://10.0.0.2:80", "EVENLOAD_GATEWAY_SERVICE_HOST": "10.0.0.2"}
    told = ended(serve, **links)

    assert (told.code, told.errors) == (0, "")
    [line] = [line for line in told.output.splitlines() if "service_links_ignored" in line]
    assert json.loads(line)["variables"] == sorted(links)
    assert "enableServiceLinks: false" in line


def test_a_service_that_crashes_exits_with_1_and_logs_why(ended):
    async def serve(_life, _settings):
        raise RuntimeError("no such luck")

    told = ended(serve)

    assert (told.code, told.errors) == (1, "")
    assert "service_crashed" in told.output
    assert "no such luck" in told.output


def test_a_service_whose_background_ends_by_itself_has_crashed(ended):
    async def end_early():
        pass

    async def serve(life, _settings):
        async with life.background(end_early()):
            await life.serve_until_stopped()

    told = ended(serve)

    assert told.code == 1
    assert "end_early" in told.output
    assert "ended by itself" in told.output


def test_a_service_that_finds_itself_misconfigured_exits_with_2_and_says_it_in_one_line(ended):
    async def serve(_life, _settings):
        raise Misconfigured("EVENLOAD_GRID: wrong")

    told = ended(serve)

    assert (told.code, told.errors) == (2, "gateway: EVENLOAD_GRID: wrong\n")
    assert "service_misconfigured" in told.output


def test_a_service_that_a_signal_reaches_just_before_it_is_ready_never_is_and_exits_with_0(ended):
    async def serve(life, _settings):
        os.kill(os.getpid(), signal.SIGTERM)
        await life.stopping.wait()
        await life.serve_until_stopped()
        await asyncio.Event().wait()  # whatever hangs then is nothing that a client waits for

    told = ended(serve)

    assert (told.code, told.errors) == (0, "")
    assert "service_ready" not in told.output
    assert "service_left_before_it_was_ready" in told.output


def crashed(told, cause):
    """Whether a service ended as one that met a bug, which its log tells once and standard error never."""
    events = [json.loads(line) for line in told.output.splitlines()]
    [crash] = [one for one in events if one["event"] == "service_crashed"]
    assert cause in crash["exception"]
    assert "loop_callback_failed" not in told.output
    return (told.code, told.errors) == (1, "")


async def fail_when(event, error):
    await event.wait()
    raise error


@pytest.mark.parametrize("error", [KeyError("a bug"), LedgerUnavailable("a bug")], ids=repr)
def test_a_service_whose_background_dies_while_it_drains_has_crashed(ended, error):
    async def serve(life, _settings):
        drains = asyncio.Event()
        asyncio.get_running_loop().call_soon(life.stopping.set)
        async with life.background(fail_when(drains, error)):
            await life.serve_until_stopped()
            drains.set()
            await asyncio.sleep(0.01)

    assert crashed(ended(serve), "a bug")


def test_a_service_whose_background_dies_during_a_drain_that_is_cut_short_has_crashed(ended, monkeypatch):
    monkeypatch.setattr("services.lifecycle.DRAIN_DEADLINE_S", 0.05)

    async def serve(life, _settings):
        drains = asyncio.Event()
        asyncio.get_running_loop().call_soon(life.stopping.set)
        async with life.background(fail_when(drains, KeyError("a bug"))):
            await life.serve_until_stopped()
            drains.set()
            await asyncio.Event().wait()

    told = ended(serve)

    assert crashed(told, "a bug")
    assert "drain_cut_short" in told.output


async def end_with(error):
    try:
        await asyncio.Event().wait()
    finally:
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [(None, 0), (BrokerUnavailable("away"), 0), (LedgerUnavailable("away"), 0), (KeyError("a bug"), 1)],
    ids=repr,
)
def test_work_that_is_ended_in_order_may_miss_a_neighbour_but_not_meet_a_bug(ended, error, code):
    async def serve(life, _settings):
        asyncio.get_running_loop().call_soon(life.stopping.set)
        async with life.background(end_with(error)):
            await life.serve_until_stopped()

    told = ended(serve)

    assert told.code == code, told
    assert code == 0 or crashed(told, "a bug")


def test_a_background_that_died_before_the_signal_is_a_crash_though_the_service_was_never_ready(ended):
    async def serve(life, _settings):
        life.stopping.set()
        async with life.background(fail_when(life.stopping, KeyError("a bug"))):
            await asyncio.sleep(0.01)
            await life.serve_until_stopped()
            raise AssertionError("it must have raised")

    assert crashed(ended(serve), "a bug")


@pytest.mark.parametrize(
    "error", [Misconfigured("wrong"), LedgerUnavailable("away"), BrokerUnavailable("away")], ids=repr
)
def test_a_service_that_cannot_start_and_is_told_to_end_leaves_with_0(ended, error):
    async def serve(life, _settings):
        life.stopping.set()
        raise error

    told = ended(serve)

    assert (told.code, told.errors) == (0, "")
    [left] = [line for line in told.output.splitlines() if "service_left_before_it_was_ready" in line]
    assert json.loads(left)["cause"] == repr(error)


def test_a_bug_at_the_start_is_a_crash_though_a_signal_has_come(ended):
    async def serve(life, _settings):
        life.stopping.set()
        raise KeyError("a bug")

    assert crashed(ended(serve), "a bug")


def test_a_crash_and_what_its_cleanup_meets_end_in_the_code_of_the_crash(ended):
    async def serve(life, _settings):
        async with life.background(fail_when(life.stopping, Misconfigured("EVENLOAD_GRID: wrong"))):
            try:
                life.stopping.set()
                await asyncio.sleep(0.01)
                life.has_begun = True
                await life.serve_until_stopped()
            finally:
                raise KeyError("a bug")

    told = ended(serve)

    assert (told.code, told.errors) == (2, "gateway: EVENLOAD_GRID: wrong\n")
