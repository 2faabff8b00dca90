"""A service that is told to end does so in time, whatever database stands still under it."""

import json
import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

from harness.stack import until

from services.ledger.sqlite import lock_held
from services.ledger.sqlite_files import lock_path
from services.local.stack import PYTHON_MODULE
from services.settings import PREFIX

KILLED_AFTER_S = 8
"""What the supervisor gives a process after SIGTERM."""
SLOW_MACHINE_S = 4
NEVER_S = "600"


@contextmanager
def service(name, log, **settings):
    """A service that writes its log to a file; killed at the end of the block if it is still there."""
    others = {one: value for one, value in os.environ.items() if not one.startswith(PREFIX)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PYTHON_MODULE, name], env={**others, "EVENLOAD_LOG_FORMAT": "json", **settings},
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def told(log):
    return [json.loads(line)["event"] for line in log.read_text().splitlines()]


def test_a_service_that_waits_for_a_silent_postgresql_leaves_at_once_with_0(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        settings = {
            "EVENLOAD_AMQP_URL": "amqp://user:word@127.0.0.1:1/evenload",
            "EVENLOAD_LEDGER_URL": f"postgresql://user:word@127.0.0.1:{silent.getsockname()[1]}/evenload",
            "EVENLOAD_STARTUP_TIMEOUT_S": NEVER_S,
        }
        with service("balancer", tmp_path / "log", **settings) as process:
            waiting, _ = silent.accept()
            process.send_signal(signal.SIGTERM)

            assert process.wait(KILLED_AFTER_S) == 0
            waiting.close()
    assert told(tmp_path / "log")[-1] == "service_left_before_it_was_ready"


def test_a_service_whose_ledger_cannot_be_closed_ends_with_1_before_it_would_be_killed(vhost, tmp_path):
    ledger, log = tmp_path / "ledger.sqlite", tmp_path / "log"
    settings = {"EVENLOAD_AMQP_URL": vhost.amqp_url("balancer"), "EVENLOAD_LEDGER_URL": f"sqlite:///{ledger}"}
    with service("balancer", log, **settings) as process:
        until(lambda: "service_ready" in told(log), "a ready balancer")
        lock = os.open(lock_path(ledger), os.O_RDWR)
        with lock_held(lock):  # as a process that stands still inside a transaction
            until(lambda: is_awaited(lock), "a sweep that waits for the lock")
            process.send_signal(signal.SIGTERM)

            assert process.wait(KILLED_AFTER_S + SLOW_MACHINE_S) == 1
        os.close(lock)
    assert told(log)[-2:] == ["drain_started", "drain_cut_short"]


def is_awaited(lock):
    """Whether the kernel shows somebody who waits for the lock of an open file."""
    place = f":{os.fstat(lock).st_ino} "
    return any("->" in line and place in line for line in Path("/proc/locks").read_text().splitlines())
