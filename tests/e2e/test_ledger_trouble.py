"""What happens to a running stack whose ledger is in trouble, and that it goes on by itself afterwards."""

import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psutil
import pytest
from harness.stack import started, until

from services.ledger.sqlite import lock_path
from services.local import locks
from services.local.stack import free_ports

SPEED = 600


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    data = tmp_path_factory.mktemp("trouble") / "data"
    with started(data, free_ports(1)[0], EVENLOAD_SPEED=str(SPEED)) as one:
        yield one.until_up()


def assert_sound(ledger) -> None:
    with closing(sqlite3.connect(ledger)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def freeze_inside_a_transaction(process: psutil.Process, lock) -> None:
    """Stop a process at a moment at which it holds the ledger's lock: it is let go on until it does."""
    give_up_at = time.monotonic() + 120
    while time.monotonic() < give_up_at:
        if process.pid not in locks.holders(lock):
            continue
        process.send_signal(signal.SIGSTOP)
        until(lambda: process.status() == psutil.STATUS_STOPPED, "a stop")
        if process.pid in locks.holders(lock):
            return
        process.send_signal(signal.SIGCONT)
    raise AssertionError(f"{process} never held {lock}")


@pytest.mark.parametrize("victim", ["gateway", "substation-north"])
def test_a_writer_frozen_inside_a_transaction_is_killed_and_everybody_writes_again(stack, victim):
    ledger = stack.data / "ledger.sqlite"
    process = stack.service(victim)
    with ThreadPoolExecutor(1) as clients:
        rush = clients.submit(stack.submit, 100, over_s=4.0, energy_kwh=2, max_power_kw=11)
        freeze_inside_a_transaction(process, lock_path(ledger))
        try:
            stack.until_said(rf"{victim} \(pid {process.pid}\) has stood still on the ledger's lock", 30)
            stack.until_said(rf"{victim} died \(signal SIGKILL\)", 30)
        finally:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        request_ids = rush.result(60) + stack.submit(1)
    stack.until_ended(request_ids)
    assert until(lambda: stack.service(victim), f"{victim} back again").pid != process.pid
    assert_sound(ledger)
