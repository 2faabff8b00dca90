"""A signal ends a service with exit code 0 at any moment of its life, and never with a trace."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from services.local.stack import PYTHON_MODULE
from services.settings import PREFIX
from services.signals import STOPS

ENDS_WITHIN_S = 60
SERVICES = ("gateway", "balancer", "substations")
COMMAND = (sys.executable, "-m", "services.cli")
MANY_ENDS = """
import asyncio, os, signal
from services.lifecycle import told_of_signals
from services.signals import STOPS

make_pipe, pipe = os.pipe, ()

def note_pipe():
    global pipe
    pipe = make_pipe()
    return pipe

os.pipe = note_pipe

async def end_often():
    with told_of_signals(lambda: None):
        print("ends", flush=True)
    for _ in range(20_000):
        with told_of_signals(lambda: None):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        signal.set_wakeup_fd(-1)
        for end in pipe:
            os.close(end)

asyncio.run(end_often())
"""
SERVICE_WITH_A_THREAD = """
import threading
from gateway.settings import GatewaySettings
from services.lifecycle import run

async def serve(life, settings):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    await life.serve_until_stopped()

run("gateway", GatewaySettings, serve)
"""
ONE_END = """
import asyncio, os, signal
from services.lifecycle import told_of_signals

async def end():
    with told_of_signals(lambda: None):
        tells = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(tells)
    # As Python does in another thread, which has taken a signal and is slow.
    os.write(tells, bytes([signal.SIGTERM]))
    assert signal.set_wakeup_fd(-1) == tells

asyncio.run(end())
"""
NO_BROKER = "amqp://user:word@127.0.0.1:1/evenload"


@contextmanager
def started(argv: tuple[str, ...], folder, *, blocked=False, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose output and errors are one pipe; `blocked`: it gets no signal until it lets them through."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    ledger_url = f"sqlite:///{folder / 'ledger.sqlite'}"
    given = {"EVENLOAD_LEDGER_URL": ledger_url, "EVENLOAD_AMQP_URL": NO_BROKER, "EVENLOAD_DATA_DIR": str(folder)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS if blocked else ())
    # Whoever runs these tests with `nohup`, or in the background, has told children to ignore these.
    ignored = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGHUP, signal.SIGINT)}
    try:
        process = subprocess.Popen(
            argv, env={**others, **given, "EVENLOAD_LOG_FORMAT": "json", **settings}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
    finally:
        for one, handler in ignored.items():
            signal.signal(one, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """What it says until a line has the word in it."""
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return said
    raise AssertionError(f"never said {word!r}: {said}")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code, and what it said from now on."""
    rest = process.stdout.read()
    return process.wait(ENDS_WITHIN_S), rest


@pytest.mark.parametrize("argv", [*((*PYTHON_MODULE, one) for one in SERVICES), (*COMMAND, "up")], ids=lambda a: a[-1])
@pytest.mark.parametrize("signum", STOPS, ids=lambda one: one.name)
def test_a_signal_that_comes_as_soon_as_the_process_exists_is_heard(argv, signum, tmp_path):
    with started(argv, tmp_path, blocked=True) as process:
        process.send_signal(signum)

        assert end(process) == (0, "")


@pytest.mark.parametrize(
    ("service", "imported"),
    [
        *((one, "services.signals") for one in SERVICES),
        *(("gateway", one) for one in ("typing", "asyncio.events", "pydantic", "aiohttp.web", "gateway.service")),
        ("balancer", "structlog"),
        ("balancer", "balancer.service"),
        ("substations", "services.settings"),
        ("substations", "substations.service"),
    ],
)
def test_a_signal_that_comes_during_the_imports_ends_a_service_with_0(service, imported, tmp_path):
    argv = (sys.executable, "-X", "importtime", *PYTHON_MODULE[1:], service)
    # Blocked, because the line about the module is there an instant before the line that follows its import is run.
    with started(argv, tmp_path, blocked=imported == "services.signals") as process:
        read_until(process, f" {imported}\n")
        process.send_signal(signal.SIGTERM)
        code, rest = end(process)

    assert code == 0
    assert "Traceback" not in rest


@pytest.mark.parametrize("imported", ["typer", "services.cli.up", "services.local.stack"])
def test_a_signal_that_comes_while_the_stack_is_imported_ends_it_with_0(imported, tmp_path):
    with started((sys.executable, "-X", "importtime", *COMMAND[1:], "up"), tmp_path) as process:
        read_until(process, f" {imported}\n")
        process.send_signal(signal.SIGINT)
        code, rest = end(process)

    assert code == 0
    assert "Traceback" not in rest


def test_ctrl_c_while_a_command_is_imported_makes_no_trace(tmp_path):
    with started((sys.executable, "-X", "importtime", *COMMAND[1:], "status"), tmp_path) as process:
        read_until(process, " typing\n")
        process.send_signal(signal.SIGINT)
        code, rest = end(process)

    assert code == 130
    assert "Traceback" not in rest


@pytest.mark.parametrize(
    ("service", "hosts", "how"),
    [
        ("balancer", "", "service_drained"),
        ("substations", "north", "service_drained"),
        ("substations", "", "service_left_before_it_was_ready"),  # it takes one only once it can serve it
    ],
)
def test_a_signal_that_comes_during_the_wait_for_the_broker_ends_a_service_with_0(service, hosts, how, tmp_path):
    settings = {"EVENLOAD_SUBSTATION_IDS": hosts} if hosts else {}
    with started((*PYTHON_MODULE, service), tmp_path, **settings) as process:
        said = read_until(process, "broker_awaited")
        process.send_signal(signal.SIGTERM)
        code, rest = end(process)

    assert code == 0, said + rest
    assert how in rest
    assert "service_ready" not in said + rest
    assert "Traceback" not in said + rest


def test_a_service_that_nohup_started_outlives_its_terminal(tmp_path):
    with started(("nohup", *PYTHON_MODULE, "balancer"), tmp_path) as process:
        read_until(process, "broker_awaited")
        process.send_signal(signal.SIGHUP)
        read_until(process, "broker_awaited")
        process.send_signal(signal.SIGTERM)

        assert end(process)[0] == 0


def test_a_service_whose_reader_has_gone_works_on_and_ends_with_0(tmp_path):
    with started((*PYTHON_MODULE, "balancer"), tmp_path) as process:
        read_until(process, "broker_awaited")
        process.stdout.close()
        process.send_signal(signal.SIGTERM)

        assert process.wait(ENDS_WITHIN_S) == 0


@pytest.mark.parametrize("signum", STOPS, ids=lambda one: one.name)
def test_signals_that_come_while_a_service_drains_and_after_it_change_no_exit_code(vhost, signum, tmp_path, port):
    gateway = {"EVENLOAD_AMQP_URL": vhost.amqp_url("gateway"), "EVENLOAD_GATEWAY_PORT": str(port)}
    with started((*PYTHON_MODULE, "gateway"), tmp_path, **gateway) as process:
        read_until(process, "service_ready")
        process.send_signal(signum)
        read_until(process, "drain_started")
        process.send_signal(signum)
        said = read_until(process, "service_drained")
        # The process is about to end: until it has, each moment is one at which a second signal may come.
        while process.poll() is None:
            process.send_signal(signum)
        code, rest = end(process)

    assert (code, "Traceback" in said + rest) == (0, False)


def test_a_signal_in_the_moment_in_which_a_process_stops_hearing_signals_makes_no_trace(tmp_path):
    with started((sys.executable, "-P", "-c", MANY_ENDS), tmp_path) as process:
        read_until(process, "ends")
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)

        assert end(process) == (0, "")


def test_signals_that_another_thread_takes_while_a_service_ends_change_no_exit_code(tmp_path):
    with started((sys.executable, "-P", "-c", SERVICE_WITH_A_THREAD), tmp_path) as process:
        read_until(process, "service_ready")
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code, rest = end(process)

    assert code == 0, rest
    assert "service_drained" in rest
    assert "Exception ignored" not in rest


def test_a_thread_that_has_taken_a_signal_can_still_tell_of_it_when_signals_are_heard_no_more(tmp_path):
    with started((sys.executable, "-P", "-c", ONE_END), tmp_path) as process:
        assert end(process) == (0, "")
