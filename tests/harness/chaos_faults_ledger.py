"""Does the faults of the ledger: foreign locks, a full disk, moved files, and what may become of a PostgreSQL."""

import asyncio
import contextlib
import fcntl
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import psycopg
from harness.chaos_kinds import Kind
from harness.chaos_ledgers import LedgerReader, PostgresLedgerReader
from harness.chaos_schedule import Fault
from harness.chaos_stack import ChaosStack, Effect
from harness.postgres import Server

from services.clock import monotonic_s
from services.ledger.sqlite_files import lock_path

FOREIGN_WAITS_S = 30
READY_WITHIN_S = 60.0
POLL_S = 0.1
WRITABLE = "-c default_transaction_read_only=off"


@contextlib.contextmanager
def _lock_of_the_file(ledger: LedgerReader):
    lock = os.open(lock_path(ledger.path), os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _exclusive_transaction(ledger: LedgerReader):
    with contextlib.closing(
        sqlite3.connect(ledger.path, timeout=FOREIGN_WAITS_S, isolation_level=None, check_same_thread=False)
    ) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.execute("ROLLBACK")


def _transaction(statement: str):
    @contextlib.contextmanager
    def held(ledger: LedgerReader):
        with psycopg.connect(ledger.url) as database:
            while True:  # the foreign one may be the victim of a deadlock
                with contextlib.suppress(psycopg.errors.DeadlockDetected), database.transaction(force_rollback=True):
                    database.execute(statement)
                    yield
                    return

    return held


LOCKS = {
    (Kind.LEDGER_LOCK, "sqlite"): _lock_of_the_file,
    (Kind.LEDGER_TRANSACTION, "sqlite"): _exclusive_transaction,
    (Kind.LEDGER_LOCK, "postgres"): _transaction("LOCK TABLE request IN ACCESS EXCLUSIVE MODE"),
    (Kind.LEDGER_TRANSACTION, "postgres"): _transaction("SELECT id FROM substation FOR UPDATE"),
}


async def hold_a_lock(stack: ChaosStack, fault: Fault) -> Effect:
    await _within(LOCKS[fault.kind, stack.ledger.kind](stack.ledger), fault.for_s)
    return Effect("the lock was held")


async def _within(block: AbstractContextManager[Any], for_s: float) -> None:
    """Stay in a block whose ends may have to wait."""
    await asyncio.to_thread(block.__enter__)
    try:
        await asyncio.sleep(for_s)
    finally:
        await asyncio.to_thread(block.__exit__, None, None, None)


async def fill_the_disk(stack: ChaosStack, fault: Fault) -> Effect:
    """The room that SQLite's log has already is taken away first: it would last for many requests."""
    await asyncio.to_thread(empty_the_log, stack.ledger.path)
    await asyncio.to_thread(stack.ledger.disk.fill)
    free_bytes = os.statvfs(stack.ledger.path.parent).f_bavail
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        await asyncio.to_thread(stack.ledger.disk.free)
    return Effect("" if free_bytes else "no block was free")


def empty_the_log(ledger: Path) -> None:
    """Write SQLite's log into the ledger's file, and cut it to nothing; raises `OSError` where others do not let us."""
    give_up_at_s = monotonic_s() + FOREIGN_WAITS_S
    with contextlib.closing(sqlite3.connect(ledger, timeout=FOREIGN_WAITS_S, isolation_level=None)) as database:
        while database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            if monotonic_s() > give_up_at_s:
                raise OSError(f"the log of {ledger.name} was in use for {FOREIGN_WAITS_S} s")


async def move_the_ledger(stack: ChaosStack, fault: Fault) -> Effect:
    """The main file goes first and comes back last: nobody may find it without the log that belongs to it."""
    ledger, [target] = stack.ledger.path, fault.targets
    suffixes = ("", "-wal", "-shm") if target.endswith("log") else ("",)
    files = [path for suffix in suffixes if (path := ledger.with_name(ledger.name + suffix)).exists()]
    away = ledger.parent / "away"
    away.mkdir(exist_ok=True)
    moved: list[Path] = []
    try:
        for path in files:
            path.rename(away / path.name)
            moved.append(path)
        await asyncio.sleep(fault.for_s)
    finally:
        made_anew = [path.name for path in moved if path.exists()]
        for path in reversed(moved):
            (away / path.name).rename(path)
    words = f"somebody made {', '.join(made_anew)} anew" if made_anew else None
    return Effect(f"{len(moved)} files were moved" if ledger in moved else "", words)


async def terminate_backends(stack: ChaosStack, _fault: Fault) -> Effect:
    ended = await asyncio.to_thread(_terminate, _server(stack))
    return Effect(f"{ended} connections were terminated" if ended else "")


def _terminate(server: Server) -> int:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        return len(connection.execute(_TERMINATE).fetchall())


_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> '' AND pid <> pg_backend_pid()"


async def restart_postgres(stack: ChaosStack, fault: Fault) -> Effect:
    """It goes at once, whoever is connected; healed once it answers."""
    server, log = _server(stack), stack.data / "logs" / "postgres.log"
    ended = _main_processes(server)
    for process in ended:
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.wait, READY_WITHIN_S)
    await asyncio.sleep(fault.for_s)
    await asyncio.to_thread(_start_again, server, log)
    give_up_at_s = monotonic_s() + READY_WITHIN_S
    while psycopg.pq.PGconn.ping(server.url().encode()) != psycopg.pq.Ping.OK:
        assert monotonic_s() < give_up_at_s, f"PostgreSQL is not ready, see {log}"
        await asyncio.sleep(POLL_S)
    return Effect(f"process {ended[0].pid} was shut down" if ended else "")


def _start_again(server: Server, log: Path) -> None:
    with log.open("ab") as output:
        again = subprocess.Popen(**server.command, stdout=output, stderr=output, start_new_session=True)
    server.started_again.append(again)


async def refuse_writes(stack: ChaosStack, fault: Fault) -> Effect:
    await asyncio.to_thread(_set_read_only, _server(stack), "on")
    try:
        await asyncio.sleep(fault.for_s)
        value = await asyncio.to_thread(_read_only, _server(stack))
    finally:
        await asyncio.to_thread(_set_read_only, _server(stack), "off")
    return Effect("a new connection was read-only" if value == "on" else "")


def _read_only(server: Server) -> str:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        return connection.execute("SHOW default_transaction_read_only").fetchone()[0]


def _set_read_only(server: Server, value: str) -> None:
    with psycopg.connect(server.url(), autocommit=True, options=WRITABLE) as connection:
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        connection.execute("SELECT pg_reload_conf()")


async def freeze_postgres(stack: ChaosStack, fault: Fault) -> Effect:
    frozen = [one for main in _main_processes(_server(stack)) for one in (main, *main.children(recursive=True))]
    _signal(frozen, psutil.Process.suspend)
    try:
        await asyncio.sleep(fault.for_s)
        stopped = sum(one.is_running() and one.status() == psutil.STATUS_STOPPED for one in frozen)
    finally:
        _signal(frozen, psutil.Process.resume)
    return Effect(f"{stopped} processes were stopped" if stopped else "")


def _signal(processes: list[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            send(one)


def _server(stack: ChaosStack) -> Server:
    assert isinstance(stack.ledger, PostgresLedgerReader)
    return stack.ledger.server


def _main_processes(server: Server) -> list[psutil.Process]:
    """The one that its data folder names: it may have been started again."""
    pid = int((server.home / "data" / "postmaster.pid").read_text().split("\n", 1)[0])
    return [psutil.Process(pid)] if psutil.pid_exists(pid) else []


INFLICT = {
    Kind.LEDGER_LOCK: hold_a_lock,
    Kind.LEDGER_TRANSACTION: hold_a_lock,
    Kind.DISK_FULL: fill_the_disk,
    Kind.LEDGER_MOVED: move_the_ledger,
    Kind.BACKENDS: terminate_backends,
    Kind.POSTGRES_RESTART: restart_postgres,
    Kind.POSTGRES_READ_ONLY: refuse_writes,
    Kind.POSTGRES_FREEZE: freeze_postgres,
}
