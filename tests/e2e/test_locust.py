"""The locust rush hour against a running stack."""

import subprocess
import sys
from pathlib import Path

from harness.stack import ROOT, started

LOCUST = [Path(sys.executable).parent / "locust", "-f", ROOT / "locustfiles/rush_hour.py", "--headless"]


def play(url: str) -> subprocess.CompletedProcess:
    command = [*LOCUST, "--only-summary", "--rush-seconds", "8", "--host", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_headless_locust_plays_a_rush_hour_without_failures(tmp_path, port, vhost):
    with started(tmp_path / "data", port, EVENLOAD_AMQP_URL=vhost.amqp_url("operator")) as stack:
        stack.until_up()
        done = play(stack.url)
        assert done.returncode == 0, done.stdout + done.stderr
        sessions = sum(one["sessions"] + one["in_flight"] for one in stack.get("/substations")[1]["items"])
        assert sessions > 5, done.stdout + done.stderr


def test_locust_fails_where_no_gateway_answers(port):
    assert play(f"http://127.0.0.1:{port}").returncode == 1
