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
from services.errors import Misconfigured
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
