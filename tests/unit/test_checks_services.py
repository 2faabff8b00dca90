"""Which processes of a local stack the doctor asks, and what those of others are told of our settings."""

import os
import subprocess
from contextlib import contextmanager

import psutil
import pytest
from harness.fake_gateway import fake_gateway

from services.cli.checks import Finding
from services.cli.checks_services import check_services
from services.local.ports import free_ports
from services.local.prometheus import process
from services.local.prometheus_programs import PrometheusInstallation
from services.local.running import RunningStack


@contextmanager
def running(port):
    """A process in whose environment stands an admin port."""
    with subprocess.Popen(["sleep", "600"], env={"EVENLOAD_ADMIN_PORT": str(port)}) as one:
        try:
            yield psutil.Process(one.pid)
        finally:
            one.kill()


@pytest.mark.parametrize("program", ["prometheus", "rabbitmq"])
async def test_the_doctor_asks_no_program_of_others_that_has_our_variables_from_the_users_shell(program):
    [nobodys_port] = free_ports(1)
    with fake_gateway() as admin, running(admin.url.rpartition(":")[2]) as own, running(nobodys_port) as other:
        admin.answers["GET", "/readyz"] = (200, b"ready\n")
        stack = RunningStack(os.getpid(), {"gateway": own, program: other})

        checks = await check_services("http://127.0.0.1:1", stack)

    assert [(one.finding, one.said) for one in checks] == [(Finding.OK, "ready: gateway")]


def test_prometheus_gets_none_of_our_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENLOAD_ADMIN_PORT", "8081")
    monkeypatch.setenv("EVENLOAD_CONSOLE_PASSWORD", "secret")
    monkeypatch.setenv("GOMAXPROCS", "2")

    spec = process(PrometheusInstallation(tmp_path / "prometheus"), tmp_path, "127.0.0.1:1", tmp_path / "log")
    environment = spec.environment_in(os.environ)

    assert not [name for name in environment if name.startswith("EVENLOAD_")]
    assert (environment["GOMAXPROCS"], environment["PATH"]) == ("2", os.environ["PATH"])
