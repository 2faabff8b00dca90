"""A fault breaks what is there to be broken, once and all at once, and tells what shows that it did."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import urllib.error
from types import SimpleNamespace

import psutil
import pytest
from harness import chaos_faults, chaos_faults_broker
from harness.chaos_faults import INFLICT
from harness.chaos_faults_broker import ask
from harness.chaos_faults_ledger import empty_the_log
from harness.chaos_kinds import Kind
from harness.chaos_part import Part, until_all_run
from harness.chaos_schedule import Fault
from harness.tcp_proxy import TcpProxy

from services.local.process import ProcessSpec
from services.signals import STOPS

SLEEPING = ("sleep", "600")
WITHIN_S = 30


@contextlib.asynccontextmanager
async def running(folder, *names, argv=SLEEPING):
    """A stack of such processes."""

    async def is_ready():
        return True

    parts = {one: Part(ProcessSpec(one, argv, {}, folder / f"{one}.log", is_ready), {}, 5.0) for one in names}
    try:
        for part in parts.values():
            await part.start()
        await until_all_run(list(parts.values()))
        yield SimpleNamespace(parts=parts, proxies={}, connection_to=lambda _: contextlib.nullcontext())
    finally:
        for part in parts.values():
            part.stay_away()
            await part.kill()
            await part.stop()


async def inflict(stack, kind, *targets, for_s=0.0):
    async with asyncio.timeout(WITHIN_S):
        return await INFLICT[kind](stack, Fault(0.0, kind, targets, for_s))


async def until(condition):
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_several_are_killed_once_each_and_in_the_same_instant(tmp_path):
    names = ("rabbitmq", "gateway-1", "balancer-1", "substations-1")
    async with running(tmp_path, *names) as stack:
        before = {one: stack.parts[one].process().pid for one in names}
        effect = await inflict(stack, Kind.KILL_SEVERAL, *names)
        assert effect == (f"processes killed: {list(before.values())}", None)
        deaths = [one for part in stack.parts.values() for one in part.deaths]
        assert sorted((one.name, one.code, one.was_killed) for one in deaths) == [
            (one, -9, True) for one in sorted(names)
        ]
        assert max(one.at_s for one in deaths) - min(one.at_s for one in deaths) < 0.3, "before any is started again"
        assert all(stack.parts[one].process().pid != before[one] for one in names)


@pytest.mark.parametrize("kind", [Kind.KILL, Kind.FREEZE, Kind.LEAVE])
async def test_who_is_not_there_at_the_moment_is_broken_once_it_is_started_again(tmp_path, kind):
    async with running(tmp_path, "other") as stack:
        part = stack.parts["other"]
        await part.kill()
        effect = await inflict(stack, kind, "other", for_s=0.1)
        assert effect.seen
        assert len(part.deaths) == (1 if kind is Kind.FREEZE else 2)


async def test_a_freeze_stops_the_process_and_lets_it_go_on(tmp_path):
    async with running(tmp_path, "other") as stack:
        process = stack.parts["other"].process()
        freezing = asyncio.create_task(inflict(stack, Kind.FREEZE, "other", for_s=1.0))
        await until(lambda: process.status() == psutil.STATUS_STOPPED)
        assert (await freezing).seen == f"process {process.pid} was stopped"
        assert process.status() != psutil.STATUS_STOPPED


async def test_a_service_hears_of_signals_only_once_it_wants_to_and_others_at_once(tmp_path):
    """It starts with the signals blocked that stop it; neither this process nor any other program does."""
    blocked = ("grep", "SigBlk", "/proc/self/status")
    for name, expected in (("gateway-1", sum(1 << one - 1 for one in STOPS)), ("rabbitmq", 0)):
        async with running(tmp_path, name, argv=blocked) as stack:
            log = stack.parts[name].spec.log
            await until(lambda log=log: log.read_text().endswith("\n"))
            assert int(log.read_text().split()[1], 16) == expected
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOPS)


async def test_a_death_tells_whether_the_process_was_told_or_killed(tmp_path):
    leaves = "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print(flush=True); signal.pause()"
    argv = (sys.executable, "-c", leaves)
    async with running(tmp_path, "other", argv=argv) as stack:
        part = stack.parts["other"]
        for end in ("told", "killed", "by itself"):
            await until(lambda: part.runs and part.spec.log.read_text().count("\n") > len(part.deaths))
            if end == "told":
                assert await part.leave() is None
                part.come()
            elif end == "killed":
                await part.kill()
            else:
                os.kill(part.process().pid, signal.SIGTERM)
                await until(lambda: len(part.deaths) == 3)
        assert [(one.code, one.was_killed, one.was_told, one.is_sound) for one in part.deaths] == [
            (0, False, True, True), (-9, True, False, True), (0, False, False, False),
        ]  # fmt: skip


async def test_who_has_used_up_its_descriptors_opens_not_one_more_however_many_numbers_are_free_below(tmp_path):
    opens = """
import os, time
files = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
for one in files[:-1]:
    os.close(one)
print("ready", flush=True)
while True:
    try:
        os.close(os.open("/dev/null", os.O_RDONLY))
    except OSError as error:
        print(error.errno, flush=True)
    time.sleep(0.01)
"""
    async with running(tmp_path, "other", argv=(sys.executable, "-c", opens)) as stack:
        log = stack.parts["other"].spec.log
        await until(lambda: "ready" in log.read_text())
        effect = await inflict(stack, Kind.DESCRIPTORS, "other", for_s=1.0)
        assert effect.seen.endswith("could open no descriptor 3")
        assert "\n24\n" in log.read_text()


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.STALL])
async def test_a_proxy_without_a_connection_breaks_nothing_and_says_so(monkeypatch, kind):
    monkeypatch.setattr(chaos_faults, "CONNECTED_WITHIN_S", 0.2)

    async def serve(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with TcpProxy(server.sockets[0].getsockname()[1]) as proxy:
        stack = SimpleNamespace(proxies={"gateway-1": proxy})
        assert await inflict(stack, kind, "gateway-1", for_s=0.1) == ("", None)
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await until(lambda: proxy.open_connections)
        assert (await inflict(stack, kind, "gateway-1", for_s=0.1)).seen.startswith("1 connections")
        writer.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("answers", "was_there"),
    [
        ([None], True),
        ([404], False),
        ([OSError("starting"), 404], True),
        ([ValueError("half an answer"), None], True),
    ],
)
async def test_what_was_not_there_at_the_first_try_was_not_deleted(monkeypatch, answers, was_there):
    def api(*_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            raise urllib.error.HTTPError("", answer, "", {}, None)

    monkeypatch.setattr(chaos_faults_broker, "api", api)
    monkeypatch.setattr(chaos_faults_broker, "POLL_S", 0.0)
    assert await ask(SimpleNamespace(broker=None), "DELETE", "queues/x") is was_there


@pytest.fixture
def ledger(tmp_path):
    """The files of a ledger that somebody has open."""
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE request (id)")
        yield path


def test_the_room_in_the_log_is_gone_before_the_disk_is_filled(ledger):
    log = ledger.with_name("ledger.sqlite-wal")
    assert log.stat().st_size > 0
    empty_the_log(ledger)
    assert log.stat().st_size == 0


@pytest.mark.parametrize(("target", "moved"), [("ledger", 1), ("ledger with its log", 3)])
async def test_a_ledger_is_away_for_a_time_and_then_the_same_file_again(ledger, target, moved):
    stack, before = SimpleNamespace(ledger=SimpleNamespace(path=ledger)), ledger.stat().st_ino
    moving = asyncio.create_task(inflict(stack, Kind.LEDGER_MOVED, target, for_s=0.5))
    await until(lambda: not ledger.exists())
    assert len(list(ledger.parent.glob("ledger.sqlite*"))) == 3 - moved
    assert await moving == (f"{moved} files were moved", None)
    assert ledger.stat().st_ino == before


async def test_whoever_makes_a_ledger_anew_while_it_is_away_is_found(ledger):
    stack = SimpleNamespace(ledger=SimpleNamespace(path=ledger))
    moving = asyncio.create_task(inflict(stack, Kind.LEDGER_MOVED, "ledger", for_s=0.5))
    await until(lambda: not ledger.exists())
    ledger.touch()
    assert (await moving).fault == "somebody made ledger.sqlite anew"
