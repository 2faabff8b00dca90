"""Each program as a process of its own that refuses to start: what only the end of an interpreter can show."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness.in_process import Ended
from harness.refusal import ENDS_WITHIN_S, NO_BROKER, SERVICES, the_one_line

from services.local import leftovers

UP = [sys.executable, "-P", "-m", "services.cli", "up"]


def service(who):
    return [sys.executable, "-P", "-m", who]


@pytest.fixture
def run(tmp_path, port):
    """Starts a command with some wrong settings, and waits for its end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")}
    settings = {
        "EVENLOAD_AMQP_URL": NO_BROKER,
        "EVENLOAD_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        "EVENLOAD_DATA_DIR": str(tmp_path / "data"),
        "EVENLOAD_GATEWAY_PORT": str(port),
        "EVENLOAD_PROMETHEUS": "0",
    }

    def start(command, *, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **wrong):
        ended = subprocess.run(
            command,
            env=kept | settings | wrong,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            timeout=ENDS_WITHIN_S,
            check=False,
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    return start


@pytest.mark.parametrize("who", SERVICES)
def test_a_service_that_refuses_says_one_line_and_exits_with_2(run, who):
    # A gateway starts without a broker, too, but not with an address that says what nobody reads.
    wrong = {"EVENLOAD_AMQP_URL": f"{NO_BROKER}?heartbeats=5"} if who == "gateway" else {}

    said = the_one_line(who, run(service(who), EVENLOAD_STARTUP_TIMEOUT_S="0.1", **wrong))

    if who == "gateway":
        assert "EVENLOAD_AMQP_URL: nobody reads the option 'heartbeats': did you mean heartbeat?" in said
    else:
        assert "EVENLOAD_AMQP_URL: no broker answers at amqp://someone:***@127.0.0.1:1/evenload" in said


def test_a_stack_passes_on_the_line_of_the_service_that_refuses_and_ends_those_that_wait(run, tmp_path):
    grid = tmp_path / "grid.toml"  # one substation is enough
    grid.write_text("name = 'mine'\n[[substation]]\nid = 'north'\nrated_kva = 400\nconnectors = 40\n")
    high_floor = {"EVENLOAD_GRID": str(grid), "EVENLOAD_SUBSTATION_FLOOR_KW": "500"}

    # The others would wait for the broker for longer than this test does for the stack.
    said = the_one_line("up", run(UP, **high_floor, EVENLOAD_STARTUP_TIMEOUT_S=str(2 * ENDS_WITHIN_S)))

    assert "substation-north refuses to start: substations: EVENLOAD_SUBSTATION_FLOOR_KW: 500 kW is above" in said
    assert leftovers.of_folder(tmp_path / "data") == []


def test_a_full_disk_under_the_output_changes_no_exit_code(run):
    """One service stands for all three: how a process is left does not depend on what it was."""
    # Refused so late that there is a log, and with the buffers that a service has by default.
    late = {"EVENLOAD_LEDGER_URL": "oracle://host/x", "PYTHONUNBUFFERED": ""}
    with Path("/dev/full").open("w") as full:
        ended = run(service("gateway"), stdout=full, stderr=full, **late)

    assert ended.code == 2
