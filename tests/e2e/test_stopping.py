"""However the stack ends, nothing of it stays, and what was accepted goes on at the next start."""

import os
import signal
import socket

import psutil
from harness.stack import Stack, marked, started, until

from services.local.ports import free_ports

GONE_WITHIN_S = 60.0


def supervisor(stack: Stack) -> psutil.Process:
    """make's child: the process that keeps the others."""
    return psutil.Process(stack.process.pid).children()[0]


def guardian(stack: Stack) -> psutil.Process:
    return next(one for one in supervisor(stack).children() if "services.local.guardian" in one.cmdline())


def listening_ports(processes: list[psutil.Process]) -> set[int]:
    return {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def assert_all_closed(ports: set[int]) -> None:
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} is still open"


def test_requests_survive_however_the_stack_ends(tmp_path, port, vhost):
    data = tmp_path / "data"
    with started(data, port) as stack:
        stack.until_up()
        # 20 kWh at 3 kW: 400 s at speed 60, so that each end of the stack finds sessions that charge.
        request_ids = stack.submit(8, energy_kwh=20, max_power_kw=3)
        stack.until_charging(request_ids)
        ports = listening_ports(stack.processes())
        assert stack.port in ports

        second = Stack(data, port, {}, [".venv/bin/evenload", "up"])
        assert second.wait() == 2
        assert f"pid {supervisor(stack).pid}" in second.output
        assert stack.get("/substations")[0] == 200

        os.killpg(stack.process.pid, signal.SIGINT)  # what a terminal does: make and the supervisor get it
        stack.wait(40)
        assert marked(data) == []
        assert_all_closed(ports)

    with started(data, port) as stack:
        stack.until_up()
        stack.until_charging(request_ids)
        until(lambda: sum(one["sessions"] for one in stack.get("/substations")[1]["items"]) == 8, "8 resumed sessions")
        ports = listening_ports(stack.processes())
        supervisor(stack).kill()
        until(lambda: marked(data) == [], "the guardian's work", GONE_WITHIN_S)
        assert_all_closed(ports)
        stack.wait()

    # The broker may even be another one: what it carried were hints.
    other_broker = {"EVENLOAD_AMQP_URL": vhost.amqp_url("operator")}
    abandoned = Stack(data, port, other_broker, ["make", "run"]).until_up()
    more = abandoned.submit(4, energy_kwh=1, max_power_kw=11)
    watcher, keeper = guardian(abandoned), supervisor(abandoned)
    watcher.kill()
    keeper.kill()
    abandoned.wait()
    assert marked(data) != [], "without its guardian the stack should have been left behind"

    with started(data, port, **other_broker) as stack:
        stack.until_said("left behind")
        stack.until_up()
        stack.until_charging(request_ids)
        for one in request_ids:
            assert stack.request("DELETE", f"/charge-requests/{one}")[0] == 202
        stack.until_ended(request_ids + more)
        assert {stack.history(one)[-1].status for one in request_ids} == {"stopped"}


def test_a_stack_whose_addresses_stand_in_files_shows_every_substation_once_it_is_up(tmp_path, port, vhost):
    values = {
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
        "EVENLOAD_LEDGER_URL": f"sqlite:///{tmp_path / 'elsewhere.sqlite'}",
        "EVENLOAD_ADMIN_PORT": str(free_ports(1)[0]),  # the stack gives each service one of its own
    }
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n")
    files = {f"{name}_FILE": str(tmp_path / name) for name in values}
    prometheus = tmp_path / "prometheus"  # one that does not start, which keeps no stack from running
    prometheus.write_text('#!/bin/sh\ncase "$1" in --version) echo "prometheus, version 9";; *) exit 2;; esac\n')
    prometheus.chmod(0o755)
    # Scraped so seldom that a substation that is missing from the table by then would be missing for long.
    settings = {"EVENLOAD_BALANCER_SCRAPE_INTERVAL_S": "10", "EVENLOAD_PROMETHEUS": str(prometheus)}
    with started(tmp_path / "data", port, **settings, **files) as stack:
        stack.until_said(r"pids +\S+ \d+")
        assert "going on without Prometheus: prometheus refuses to start" in stack.output
        items = stack.get("/substations")[1]["items"]
        assert {one["substation"] for one in items} == {"north", "east", "south", "west"}
        stack.until_ended(stack.submit(4, energy_kwh=0.5))

    assert "using the broker of EVENLOAD_AMQP_URL" in stack.output
    assert (tmp_path / "elsewhere.sqlite").exists()


def test_a_service_that_cannot_start_ends_the_stack_with_its_last_lines(tmp_path, port, vhost):
    data = tmp_path / "data"
    data.mkdir(parents=True)
    (data / "ledger.sqlite").write_text("this is no database, but long enough to be taken for one by its size")
    stack = Stack(data, port, {"EVENLOAD_AMQP_URL": vhost.amqp_url("operator")}, ["make", "run"])
    assert stack.wait(120) != 0
    assert "refuses to start" in stack.output
    assert "ledger.sqlite is no usable ledger" in stack.output
    assert marked(data) == []


def test_a_service_that_dies_three_times_ends_the_stack_with_its_last_lines(tmp_path, port, vhost):
    data = tmp_path / "data"
    stack = Stack(data, port, {"EVENLOAD_AMQP_URL": vhost.amqp_url("operator")}, ["make", "run"]).until_up()
    for _ in range(3):
        balancer = until(lambda: stack.service("balancer"), "a balancer")
        balancer.kill()
        balancer.wait(10)
    assert stack.wait(60) != 0
    assert "balancer died 3 times" in stack.output
    assert "service_ready" in stack.output.split("balancer died 3 times")[1]
    assert marked(data) == []
