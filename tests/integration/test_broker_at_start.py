"""Processes that start before their broker or ledger: they wait and say for what; a gateway needs no broker."""

import contextlib
import fcntl
import os

import pytest
from harness.broker import api, guarded
from harness.fleet import Member
from harness.stack import Api, readiness, until
from harness.tcp_proxy import TcpProxy
from yarl import URL

from services.broker import topology
from services.ledger.sqlite_files import lock_path


@pytest.fixture
def proxy(broker):
    with TcpProxy(broker.ports.amqp) as one:
        yield one


@pytest.fixture
def start(vhost, proxy, tmp_path):
    """Starts a process of a package, with the proxy before its broker."""
    with contextlib.ExitStack() as stack:
        marks = stack.enter_context(guarded(tmp_path))

        def started(package, **more):
            url = str(URL(vhost.amqp_url(package.removesuffix("s"))).with_port(proxy.port))
            settings = {"EVENLOAD_AMQP_URL": url, "EVENLOAD_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite'}"}
            settings |= {"EVENLOAD_LOG_FORMAT": "json", "EVENLOAD_STARTUP_TIMEOUT_S": "120", **marks, **more}
            member = Member(package, tmp_path / f"{package}.log", settings)
            stack.callback(member.kill)
            return member

        yield started


def place(vhost, proxy, role):
    return f"amqp://{role}:***@127.0.0.1:{proxy.port}/{vhost.name}"


@pytest.mark.parametrize("trouble", ["refuse", "stall"])
def test_a_gateway_without_a_broker_accepts_and_publishes_once_it_is_there(start, vhost, proxy, trouble):
    getattr(proxy, trouble)()
    gateway = start("gateway").until_ready()
    at_the_door = Api(f"http://127.0.0.1:{gateway.port}")

    assert at_the_door.post(vehicle_id="EV-1")[0] == 202
    waits = f"ready\ndegraded: waiting for the broker at {place(vhost, proxy, 'gateway')}"
    if trouble == "refuse":
        waits += f": [Errno 111] Connect call failed ('127.0.0.1', {proxy.port})"
    status, said = readiness(gateway.admin_port)
    assert (status, said.startswith(waits)) == (200, True), said
    proxy.heal()
    until(lambda: readiness(gateway.admin_port) == (200, "ready\n"), "well", 60)
    assert at_the_door.post(vehicle_id="EV-2")[0] == 202
    until(lambda: vhost.queue(topology.INTAKE).get("messages") == 1, "the second one's message", 60)


def test_a_balancer_says_what_it_waits_for_and_goes_on_once_it_is_there(start, vhost, proxy):
    proxy.refuse()
    balancer = start("balancer")

    cause = f"[Errno 111] Connect call failed ('127.0.0.1', {proxy.port})"
    waits = f"not ready: waiting for the broker at {place(vhost, proxy, 'balancer')}: {cause}\n"
    until(lambda: readiness(balancer.admin_port) == (503, waits), waits, 60)
    until(lambda: proxy.open_connections == 0 and len(balancer.said("broker_awaited")) == 2, "one line a connection")
    proxy.heal()
    balancer.until_ready()
    assert {line["cause"] for line in balancer.said("broker_awaited")} == {cause}
    assert len(balancer.said("broker_awaited")) == 2


def test_what_is_accepted_before_there_was_a_broker_is_charged_by_the_ledger_alone(start, vhost, proxy):
    proxy.refuse()
    gateway, _, substations = start("gateway"), start("balancer"), start("substations", EVENLOAD_SUBSTATION_IDS="*")
    at_the_door = Api(f"http://127.0.0.1:{gateway.until_ready().port}")

    path = f"/charge-requests/{at_the_door.post(vehicle_id='EV-1', energy_kwh=0.2)[1]['request_id']}"
    until(lambda: at_the_door.get(path)[1]["status"] == "completed", "an end", 60)
    status, said = readiness(substations.admin_port)
    assert (status, said.split(":")[0]) == (503, "not ready")
    assert f"waiting for the broker at {place(vhost, proxy, 'substation')}" in said
    assert not substations.said("service_ready")
    proxy.heal()
    substations.until_ready()


def test_a_process_tells_at_its_readyz_its_metrics_and_its_log_what_is_missing_at_the_broker(start, vhost):
    gateway, balancer = start("gateway").until_ready(), start("balancer").until_ready()
    api(vhost.broker, "DELETE", f"exchanges/{vhost.name}/{topology.EVENTS}")
    told = f"the broker's topology is incomplete: exchange 'charge.events' is missing: {topology.MEND}\n"

    until(lambda: readiness(balancer.admin_port) == (503, f"not ready: {told}"), told, 60)
    until(lambda: readiness(gateway.admin_port) == (200, f"ready\ndegraded: {told}"), told, 60)
    for one in (gateway, balancer):
        assert "\nevenload_broker_topology_missing 1.0\n" in one.metrics()
        [line] = one.said("broker_topology_incomplete")
        assert (line["cause"], line["cure"]) == ("exchange 'charge.events' is missing", topology.MEND)
    api(vhost.broker, "POST", f"definitions/{vhost.name}", topology.topology())
    for one in (gateway, balancer):
        until(lambda one=one: readiness(one.admin_port) == (200, "ready\n"), "well", 60)
        assert "\nevenload_broker_topology_missing 0.0\n" in one.metrics()
        assert len(one.said("broker_topology_whole")) == 1


def test_a_process_says_that_it_waits_for_the_ledger_and_goes_on_once_it_can_be_had(start, tmp_path):
    gate = os.open(lock_path(tmp_path / "ledger.sqlite"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(gate, fcntl.LOCK_EX)
    try:
        gateway = start("gateway")
        until(
            lambda: readiness(gateway.admin_port) == (503, "not ready: waiting for the ledger\n"), "what it lacks", 60
        )
    finally:
        os.close(gate)
    gateway.until_ready()
