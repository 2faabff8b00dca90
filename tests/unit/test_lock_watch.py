"""Who is taken for standing still on a lock, and who is not, with real processes and a clock of the test's own."""

import contextlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from services.local import locks
from services.local.lock_watch import LOOK_EVERY_S, STANDS_STILL_S, LockWatch, StandsStill

HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
while True:
    time.sleep(0.001)
"""
LOOKS = int(STANDS_STILL_S / LOOK_EVERY_S)


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "ledger.sqlite.lock"


@pytest.fixture
def holder(lock):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield psutil.Process(process.pid)
        process.kill()


def freeze(process):
    process.send_signal(signal.SIGSTOP)
    until_stopped = time.monotonic() + 10
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < until_stopped


def looks(watch, count, start_s=0.0, every_s=LOOK_EVERY_S, between=lambda: None):
    found = []
    for number in range(count):
        found.append(watch.look(start_s + number * every_s))
        between()
    return found


def test_a_frozen_holder_is_found_after_the_bound_and_not_before(lock, holder):
    freeze(holder)

    found = looks(LockWatch(lock), LOOKS + 1)

    assert found == [None] * LOOKS + [StandsStill(holder.pid, waits_for_disk=False)]


def test_a_holder_that_moves_on_is_never_found_however_long_it_holds(lock, holder):
    def until_it_ran():
        before = holder.num_ctx_switches()
        while holder.num_ctx_switches() == before:
            time.sleep(0.001)

    assert looks(LockWatch(lock), 3 * LOOKS, between=until_it_ran) == [None] * 3 * LOOKS


def test_a_holder_that_goes_on_in_time_is_not_found(lock, holder):
    watch = LockWatch(lock)
    freeze(holder)
    looks(watch, LOOKS)
    before = holder.num_ctx_switches()
    holder.send_signal(signal.SIGCONT)
    while holder.num_ctx_switches() == before:
        time.sleep(0.001)
    freeze(holder)

    assert looks(watch, LOOKS, start_s=STANDS_STILL_S) == [None] * LOOKS


def test_who_stands_still_without_the_lock_is_left_alone(lock, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "other")], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        freeze(psutil.Process(process.pid))
        lock.touch()
        assert looks(LockWatch(lock), 2 * LOOKS) == [None] * 2 * LOOKS
        process.kill()


def test_a_watcher_that_was_frozen_too_blames_nobody_for_the_time_it_did_not_look(lock, holder):
    freeze(holder)

    assert looks(LockWatch(lock), 3, every_s=3_600) == [None] * 3


def test_a_holder_that_is_gone_is_nobody(lock, holder):
    watch = LockWatch(lock)
    freeze(holder)
    assert looks(watch, LOOKS + 1)[-1] is not None
    holder.kill()
    with contextlib.suppress(psutil.NoSuchProcess):
        while locks.holders(lock):
            time.sleep(0.001)

    assert watch.look(2 * STANDS_STILL_S) is None
