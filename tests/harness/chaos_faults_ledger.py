"""Does the faults of the ledger: foreign locks, a full disk, and a PostgreSQL that is ended, read-only or frozen."""

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
from harness.chaos_stack import ChaosStack
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


async def hold_a_lock(stack: ChaosStack, fault: Fault) -> None:
    await _within(LOCKS[fault.kind, stack.ledger.kind](stack.ledger), fault.for_s)


async def _within(block: AbstractContextManager[Any], for_s: float) -> None:
    """Stay in a block whose ends may have to wait."""
    await asyncio.to_thread(block.__enter__)
    try:
        await asyncio.sleep(for_s)
    finally:
        await asyncio.to_thread(block.__exit__, None, None, None)


async def fill_the_disk(stack: ChaosStack, fault: Fault) -> None:
    await asyncio.to_thread(stack.ledger.disk.fill)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        await asyncio.to_thread(stack.ledger.disk.free)


async def terminate_backends(stack: ChaosStack, _fault: Fault) -> None:
    await asyncio.to_thread(_server(stack).execute, _TERMINATE)


_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname <> '' AND pid <> pg_backend_pid()"


async def restart_postgres(stack: ChaosStack, fault: Fault) -> None:
    """It goes at once, whoever is connected; healed once it answers."""
    server, log = _server(stack), stack.data / "logs" / "postgres.log"
    for process in _main_processes(server):
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.wait, READY_WITHIN_S)
    await asyncio.sleep(fault.for_s)
    await asyncio.to_thread(_start_again, server, log)
    give_up_at_s = monotonic_s() + READY_WITHIN_S
    while psycopg.pq.PGconn.ping(server.url().encode()) != psycopg.pq.Ping.OK:
        assert monotonic_s() < give_up_at_s, f"PostgreSQL is not ready, see {log}"
        await asyncio.sleep(POLL_S)


def _start_again(server: Server, log: Path) -> None:
    with log.open("ab") as output:
        again = subprocess.Popen(**server.command, stdout=output, stderr=output, start_new_session=True)
    server.started_again.append(again)


async def refuse_writes(stack: ChaosStack, fault: Fault) -> None:
    await asyncio.to_thread(_set_read_only, _server(stack), "on")
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        await asyncio.to_thread(_set_read_only, _server(stack), "off")


def _set_read_only(server: Server, value: str) -> None:
    with psycopg.connect(server.url(), autocommit=True, options=WRITABLE) as connection:
        connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        connection.execute("SELECT pg_reload_conf()")


async def freeze_postgres(stack: ChaosStack, fault: Fault) -> None:
    frozen = [one for main in _main_processes(_server(stack)) for one in (main, *main.children(recursive=True))]
    _signal(frozen, psutil.Process.suspend)
    try:
        await asyncio.sleep(fault.for_s)
    finally:
        _signal(frozen, psutil.Process.resume)


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
    Kind.BACKENDS: terminate_backends,
    Kind.POSTGRES_RESTART: restart_postgres,
    Kind.POSTGRES_READ_ONLY: refuse_writes,
    Kind.POSTGRES_FREEZE: freeze_postgres,
}
