"""From bare: what is missing is named in one line, and the built wheel runs outside the tree."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from harness.stack import ROOT, started, until

from services.errors import Misconfigured
from services.local import rabbitmq_programs


@pytest.mark.parametrize("tool", ["git", "make"])
def test_a_missing_tool_is_told_by_the_ci_script_with_its_package(tmp_path, tool):
    for name in {"bash", "dirname", "git", "make"} - {tool}:
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [tmp_path / "bash", ROOT / ".ci/run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()) == (2, [f"{tool} is missing: apt install {tool}"])


def test_without_network_and_cache_the_missing_broker_is_named_with_its_cures(tmp_path, monkeypatch):
    unreachable = tmp_path / "apt.conf"
    unreachable.write_text(
        'Acquire::http::Proxy "http://127.0.0.1:9"; Acquire::https::Proxy "http://127.0.0.1:9"; '
        'Acquire::Retries::Delay "false";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(unreachable))
    find_program = rabbitmq_programs.find_program
    monkeypatch.setattr(
        rabbitmq_programs, "find_program", lambda name, *more: None if name == "erl" else find_program(name, *more)
    )
    with pytest.raises(Misconfigured) as refused:
        rabbitmq_programs.find_rabbitmq(tmp_path / "cache", print)
    assert "fetching package lists failed" in str(refused.value)
    assert "EVENLOAD_AMQP_URL" in str(refused.value)
    assert [one.suffix for one in (tmp_path / "cache").iterdir()] == [".lock"]


def test_the_built_wheel_runs_outside_the_tree_and_tells_programs_where_everything_is(tmp_path, port, vhost):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"], cwd=ROOT, check=True
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies are this environment's; the packages may only come from the wheel.
    dependencies = next(one for one in sys.path if one.endswith("site-packages"))
    environment = {
        "PYTHONPATH": f"{site}{os.pathsep}{dependencies}",
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
        # Nothing is sent through a proxy, and what Kubernetes writes for a service of our name is ignored.
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
        "EVENLOAD_ADMIN_PORT": "tcp://10.0.0.1:80",
        "EVENLOAD_GATEWAY_SERVICE_HOST": "10.0.0.1",
    }
    python = [sys.executable, "-S", "-c"]
    where = "import services, gateway, balancer, substations as s; print(services.__file__, s.__file__)"
    found = subprocess.run(
        [*python, where], cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(site)) for path in found.stdout.split())
    command = [sys.executable, "-c", "import services.cli.main as it; it.main()", "up", "--json"]
    errors = tmp_path / "errors"
    with started(
        tmp_path / "what's #1? 100%", port, command=command, cwd=tmp_path, errors=errors, **environment
    ) as stack:
        running = json.loads(stack.until_said(r'(?m)^\{.*"gateway_url".*\}$').group())
        assert running["gateway_url"] == stack.url
        assert running["supervisor_pid"] == stack.process.pid
        assert running["prometheus_url"] is None
        assert {"gateway", "balancer", "substation-north"} <= running["pids"].keys()
        until(lambda: len(stack.get("/substations")[1]["items"]) == 4, "a load table of all substations")
        [request_id] = stack.submit(1, energy_kwh=0.2, max_power_kw=11)
        stack.until_ended([request_id])
        assert stack.stop() == 0
    assert [json.loads(line) for line in stack.lines] == [running]
    assert "everything is down" in errors.read_text()
