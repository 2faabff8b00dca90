"""A gateway whose file descriptors are used up says so in a line, and serves again when they are free."""

import json
import os
import resource
import socket
import subprocess
import urllib.request
from contextlib import ExitStack

import pytest
from harness.stack import until

from services.local.ports import free_ports
from services.local.stack import PYTHON_MODULE
from services.settings import PREFIX

FILES_MAX = 64
IDLE = 100


@pytest.fixture
def gateway(vhost, tmp_path):
    """Starts a gateway with so many files at most, soft and hard; tells its ports and its log."""
    with ExitStack() as stack:

        def start(soft, hard):
            port, admin_port = free_ports(2)
            others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
            log = tmp_path / "log"
            settings = {
                "EVENLOAD_AMQP_URL": vhost.amqp_url("gateway"),
                "EVENLOAD_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger'}",
                "EVENLOAD_GATEWAY_PORT": str(port),
                "EVENLOAD_ADMIN_PORT": str(admin_port),
                "EVENLOAD_LOG_FORMAT": "json",
            }
            with log.open("wb") as output:
                process = stack.enter_context(
                    subprocess.Popen(
                        ["prlimit", f"--nofile={soft}:{hard}", *PYTHON_MODULE, "gateway"],
                        env={**others, **settings}, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                    )
                )  # fmt: skip
            stack.callback(process.kill)
            until(lambda: "service_ready" in log.read_text(), "a ready gateway")
            return process, port, admin_port, log

        yield start


def answers(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return None, ""


def test_a_gateway_without_descriptors_writes_a_line_and_answers_again_when_it_has_some(gateway):
    process, port, admin_port, log = gateway(FILES_MAX, FILES_MAX)
    before = len(log.read_text().splitlines())
    with ExitStack() as idle:
        for _ in range(IDLE):
            idle.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        until(lambda: "connection_not_accepted" in log.read_text(), "a word of it")
    until(lambda: answers(port, "/substations")[0] == 200, "an answer")

    code, told = answers(admin_port, "/readyz")
    lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    [line] = [one for one in lines if one["event"] == "connection_not_accepted"]
    assert (line["port"], line["files_max"], line["cause"]) == (port, FILES_MAX, "Too many open files")
    assert len(lines) < 10
    assert not any("exception" in one for one in lines)
    assert code == 200 or "connections cannot be accepted: Too many open files" in told
    assert process.poll() is None


def test_a_service_takes_as_many_descriptors_as_it_may_have(gateway):
    process, _, _, _ = gateway(FILES_MAX, 2_000)

    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (2_000, 2_000)
