"""Prometheus beside the stack: it knows everybody, its figures are the ledger's, and nobody depends on it."""

import collections
import json
import shutil
import subprocess
import threading
from pathlib import Path

import psutil
import pytest
from harness.prometheus import Prometheus, expressions
from harness.stack import ROOT, Stack, started, until

from services.local.stack import free_ports

SPEED = 120
SUBSTATIONS = {"north", "east", "south", "west"}
EVENLOAD = str(ROOT / ".venv/bin/evenload")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    settings = {"EVENLOAD_PROMETHEUS": "auto", "EVENLOAD_SPEED": str(SPEED)}
    with started(tmp_path_factory.mktemp("prometheus") / "data", free_ports(1)[0], **settings) as one:
        yield one.until_up()


@pytest.fixture(scope="module")
def prometheus(stack):
    return Prometheus(stack.until_said(r"Prometheus +(http://127\.0\.0\.1:\d+)").group(1))


def process(stack: Stack) -> psutil.Process | None:
    return next((one for one in stack.processes() if one.name() == "prometheus"), None)


def test_it_finds_everybody(stack, prometheus):
    everybody = {(job, job) for job in ("gateway", "balancer", "prometheus", "rabbitmq")}
    everybody |= {("rabbitmq-queues", "rabbitmq")} | {("substations", one) for one in SUBSTATIONS}

    until(lambda: prometheus.health() == dict.fromkeys(everybody, "up"), "every target up")


def test_every_question_of_the_dashboards_has_an_answer_and_the_counts_are_the_ledgers(stack, prometheus):
    request_ids: list[str] = []
    rush = threading.Thread(
        target=lambda: request_ids.extend(stack.submit(200, over_s=10, energy_kwh=6, max_power_kw=11))
    )
    rush.start()
    assert {stack.post(vehicle_id="EV-1", energy_kwh=-1)[0] for _ in range(3)} == {422}
    unanswered = expressions()

    def all_answered() -> bool:
        unanswered[:] = [one for one in unanswered if not prometheus.shows(one)]
        return not unanswered

    try:
        until(all_answered, f"an answer to {unanswered}")
    finally:
        rush.join()
    stack.until_ended(request_ids)

    charged = collections.Counter(
        line["substation"] for line in stack.get("/charge-requests?status=completed&limit=500")[1]["items"]
    )
    assert sum(charged.values()) == 200

    def agrees() -> bool:
        claims = prometheus.by("substation", "evenload_substation_claims_total")
        states = prometheus.by("state", "evenload_gateway_requests")
        assigned = prometheus.by("substation", "sum by (substation) (evenload_balancer_assignments_total)")
        refused = prometheus.by("outcome", "evenload_gateway_http_requests_total")["422"]
        return (claims, states["completed"], sum(assigned.values()) >= 200, refused) == (charged, 200, True, 3)

    until(agrees, f"Prometheus counting {charged}")


def test_who_is_silent_stays_a_target_that_is_down(stack, prometheus):
    north = stack.service("substation-north")
    north.suspend()
    try:
        until(lambda: prometheus.by("instance", 'up{job="substations"} == 0') == {"north": 0}, "north seen down")
        assert len(stack.get("/targets")[1]) == len(SUBSTATIONS)
    finally:
        north.resume()
    until(lambda: prometheus.by("instance", 'up{job="substations"} == 1').keys() == SUBSTATIONS, "north up again")


def test_it_comes_back_when_it_is_broken_and_after_the_third_time_the_stack_goes_on_without(stack):
    broken = subprocess.run(
        [EVENLOAD, "break", "prometheus", "--json"],
        env={"PATH": "/usr/bin:/bin", "EVENLOAD_DATA_DIR": str(stack.data)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert broken.returncode == 0, broken.stderr
    assert json.loads(broken.stdout)["target"] == "prometheus"
    for _ in range(2):
        victim = until(lambda: process(stack), "Prometheus")
        victim.kill()
        until(lambda gone=victim: not gone.is_running(), "its end")

    stack.until_said(r"prometheus died 3 times[\s\S]*going on without prometheus")
    assert process(stack) is None
    stack.until_ended(stack.submit(4, energy_kwh=1, max_power_kw=11))


def fake(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_where_it_cannot_be_had_the_stack_says_so_and_goes_on(tmp_path, port, vhost):
    unreachable = tmp_path / "apt.conf"
    unreachable.write_text('Acquire::http::Proxy "http://127.0.0.1:9"; Acquire::https::Proxy "http://127.0.0.1:9";\n')
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "dpkg"):  # and no Prometheus, should one be installed
        (tools / name).symlink_to(shutil.which(name))
    settings = {
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
        "EVENLOAD_PROMETHEUS": "auto",
        "EVENLOAD_CACHE_DIR": str(tmp_path / "cache"),
        "APT_CONFIG": str(unreachable),
        "PATH": str(tools),
    }
    with started(tmp_path / "data", port, command=[EVENLOAD, "up"], **settings) as stack:
        stack.until_up()
        [told] = [line for line in stack.lines if line.startswith("going on without Prometheus")]
        assert "fetching package lists failed" in told
        assert told.endswith("or do without: EVENLOAD_PROMETHEUS=0")


def test_one_that_does_not_start_does_not_keep_the_stack_from_it(tmp_path, port, vhost):
    program = fake(tmp_path / "prometheus", 'case "$1" in --version) echo "prometheus, version 9";; *) exit 2;; esac')
    settings = {"EVENLOAD_AMQP_URL": vhost.amqp_url("operator"), "EVENLOAD_PROMETHEUS": program}
    with started(tmp_path / "data", port, **settings) as stack:
        stack.until_up()
        assert "going on without Prometheus: prometheus refuses to start" in stack.output
