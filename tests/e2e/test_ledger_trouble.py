"""What happens to a running stack whose ledger is in trouble, and that it goes on by itself afterwards."""

import collections
import fcntl
import re
import signal
import sqlite3
import time
import urllib.request
from contextlib import closing, contextmanager, suppress

import psutil
import pytest
from harness.full_disk import limited, mounted
from harness.ledger import all_histories
from harness.refusal import refused
from harness.stack import Stack, readiness, started, until
from harness.tick_trace import logged

from services.ledger.sqlite_files import lock_path
from services.ledger.states import Status, faults
from services.local import locks
from services.local.ports import free_ports

SPEED = 600
SERVICES = ("gateway", "balancer", "substation-north", "substation-east", "substation-south", "substation-west")


@pytest.fixture(scope="module")
def stack(tmp_path_factory, module_vhost):
    data = tmp_path_factory.mktemp("trouble") / "data"
    settings = {
        "EVENLOAD_AMQP_URL": module_vhost.amqp_url("operator"),
        "EVENLOAD_LEDGER_URL": f"sqlite:///{data.absolute() / 'ledger' / 'ledger.sqlite'}",
        "EVENLOAD_SPEED": str(SPEED),
    }
    with started(data, free_ports(1)[0], **settings) as one:
        yield one.until_up()


def assert_sound(ledger) -> None:
    with closing(sqlite3.connect(ledger)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def assert_refused(stack: Stack) -> None:
    status, headers, problem = stack.whole_answer("POST", "/charge-requests", {"vehicle_id": "EV-1"})
    assert (status, problem["status"]) == (503, 503)
    assert headers["Content-Type"].startswith("application/problem+json")
    assert int(headers["Retry-After"]) > 0


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


@contextmanager
def locked(folder):
    """Somebody else holds the writers' lock."""
    with lock_path(folder / "ledger.sqlite").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def busy(folder):
    """Somebody else is inside a transaction and knows nothing of the writers' lock."""
    with closing(sqlite3.connect(folder / "ledger.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA busy_timeout = 60000")
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


@contextmanager
def moved(folder):
    away = folder.rename(folder.with_name("moved"))
    yield
    away.rename(folder)


@pytest.mark.parametrize("trouble", [locked, busy, moved])
def test_failure_24_while_the_ledger_is_away_nothing_is_accepted_and_all_goes_on_when_it_is_back(stack, trouble):
    pids = {name: stack.service(name).pid for name in SERVICES}
    lines = {name: len(stack.said_by(name)) for name in SERVICES}
    with stack.rush(80, over_s=4.0, energy_kwh=2, max_power_kw=11) as rush:
        until(lambda: stack.listed(Status.CHARGING), "a rush under way")
        began_s = time.monotonic()
        with trouble(stack.data / "ledger"):
            for name in SERVICES:
                until(lambda name=name: readiness(stack.admin_port(name))[0] == 503, f"{name} to notice")
            assert_refused(stack)
            assert "the ledger cannot be written" in readiness(stack.admin_port("gateway"))[1]
            assert not rush.is_over
        away_s = time.monotonic() - began_s
        request_ids = rush.ids() + stack.submit(1)

    for name in SERVICES:
        until(lambda name=name: readiness(stack.admin_port(name))[0] == 200, f"{name} ready again")
        said = collections.Counter(line["event"] for line in stack.said_by(name)[lines[name] :])
        for usual in ("request_refused", "requests_claimed"):  # one for each request or envelope
            del said[usual]
        assert max(said.values(), default=0) < 20 + 5 * away_s, f"{name} tried again without a pause: {said}"
    stack.until_ended(request_ids)
    assert {name: stack.service(name).pid for name in SERVICES} == pids
    assert all(returned_to_queue(stack, name) == 0 for name in SERVICES)
    assert_sound(stack.data / "ledger" / "ledger.sqlite")


def test_who_starts_while_the_ledgers_file_is_away_makes_no_other_one_and_nothing_is_lost(stack, capfd):
    folder = stack.data / "ledger"
    path = folder / "ledger.sqlite"
    request_ids = stack.submit(200, energy_kwh=1, max_power_kw=11)

    path.rename(folder / "gone")
    environment = stack.service("balancer").environ()
    settings = {name: environment[name] for name in ("EVENLOAD_AMQP_URL", "EVENLOAD_LEDGER_URL")}
    said = refused("balancer", settings, capfd)
    assert f"EVENLOAD_LEDGER_URL: {path} is gone or empty, but ledger.sqlite-wal beside it tells that" in said
    assert_refused(stack)
    for name in SERVICES:
        _, told = until(lambda name=name: (found := readiness(stack.admin_port(name)))[0] == 503 and found, name)
        assert f"{path} is gone: put the right one back" in told
    assert not path.exists()

    (folder / "gone").rename(path)
    for name in SERVICES:
        until(lambda name=name: readiness(stack.admin_port(name))[0] == 200, f"{name} ready again")
    with closing(sqlite3.connect(path)) as database:
        kept = {row[0] for row in database.execute("SELECT id FROM request")}
    assert kept >= set(request_ids)
    stack.until_ended(request_ids + stack.submit(1))
    assert_sound(path)


@pytest.fixture(params=[mounted, limited])
def full_disk(request, tmp_path):
    """A folder, and the disk that it lies on."""
    with request.param(tmp_path / "disk") as disk:
        yield tmp_path / "disk", disk


def test_failure_23_a_full_disk_is_told_and_survived_and_room_is_all_that_it_takes_to_go_on(
    full_disk, tmp_path, port, vhost
):
    folder, disk = full_disk
    (folder / "logs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "logs").symlink_to(folder / "logs")
    settings = {
        "EVENLOAD_LEDGER_URL": f"sqlite:///{folder / 'ledger.sqlite'}",
        "EVENLOAD_SUBSTATION_TICK_LOG": str(folder / "ticks"),
        "EVENLOAD_SPEED": str(SPEED),
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
    }
    with (
        started(tmp_path / "data", port, **settings) as stack,
        stack.until_up().rush(80, over_s=4.0, energy_kwh=4, max_power_kw=11) as rush,
    ):
        pids = {name: stack.service(name).pid for name in SERVICES}
        until(lambda: stack.listed(Status.CHARGING), "a rush under way")
        disk.fill(stack)
        try:
            until(lambda: readiness(stack.admin_port("gateway"))[0] == 503, "the gateway to notice")
            # Who has nothing to write meanwhile notices nothing: of the substations those that charge.
            charging = [name for name in SERVICES if name.startswith("substation")]
            until(lambda: any(readiness(stack.admin_port(one))[0] == 503 for one in charging), "a substation to notice")
            assert_refused(stack)
            assert_sound(folder / "ledger.sqlite")
        finally:
            disk.free(stack)
        request_ids = rush.ids() + stack.submit(1)
        stack.until_ended(request_ids)
        for name in SERVICES:
            until(lambda name=name: readiness(stack.admin_port(name))[0] == 200, f"{name} ready again")
        assert {name: stack.service(name).pid for name in SERVICES} == pids
        assert_sound(folder / "ledger.sqlite")
        for name in ("gateway", "substation-north"):
            stack.service(name).terminate()
            stack.until_said(rf"{name} died \(exit code 0\)", 30)
    histories, last = all_histories(folder / "ledger.sqlite")
    assert histories.keys() == last.keys() >= set(request_ids)
    assert [faults(history) for history in histories.values()] == [[]] * len(histories)
    assert all(logged(folder / "ticks").values())


def returned_to_queue(stack: Stack, instance: str) -> float:
    """Deliveries that a service gave back, each of which counts against the broker's limit."""
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.admin_port(instance)}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r'^evenload_messages_settled_total\{.*outcome="requeued".*\} (\S+)$', text, re.MULTILINE)
    return sum(float(value) for value in found)


@pytest.mark.parametrize("victim", ["gateway", "substation-north"])
def test_a_writer_frozen_inside_a_transaction_is_killed_and_everybody_writes_again(stack, victim):
    ledger = stack.data / "ledger" / "ledger.sqlite"
    process = stack.service(victim)
    with stack.rush(60, over_s=3.0, energy_kwh=2, max_power_kw=11) as rush:
        freeze_inside_a_transaction(process, lock_path(ledger))
        try:
            stack.until_said(rf"{victim} \(pid {process.pid}\) has stood still on the ledger's lock", 30)
            stack.until_said(rf"{victim} died \(signal SIGKILL\)", 30)
        finally:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        request_ids = rush.ids() + stack.submit(1)
    stack.until_ended(request_ids)
    assert until(lambda: stack.service(victim), f"{victim} back again").pid != process.pid
    assert_sound(ledger)
