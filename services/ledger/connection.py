"""A process's connection to the ledger: one writer that commits in groups, one reader; opened by address."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger import sqlite, statements
from services.ledger.committer import Committer, Operation, Row, Transaction

Answer = TypeVar("Answer")
SQLITE_SCHEME = "sqlite:///"
READ_DEADLINE_S = 5.0
RETRY_PAUSE_S = 0.5


class LedgerConnection:
    """Where the three views of the ledger write and read."""

    def __init__(self, committer: Committer, reader: sqlite.SqliteReader, thread: ThreadPoolExecutor) -> None:
        self._committer = committer
        self._reader = reader
        self._thread = thread

    @property
    def fault(self) -> str | None:
        """Why writing failed last; None since it went well."""
        return self._committer.fault

    async def probe(self) -> None:
        """Write something that changes with every call; raises `LedgerUnavailable`."""
        await self.write(PROBE, [{"probe": uuid.uuid4().hex}])

    async def write(self, operation: Operation, rows: list[Row]) -> list[Row]:
        """Commit rows together with whatever else is pending; raises `LedgerUnavailable`."""
        return await self._committer.submit(operation, rows)

    async def read(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` on one snapshot, off the event loop; raises `LedgerUnavailable`."""
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                answer: Answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.read, work)
                return answer
        except TimeoutError:
            raise LedgerUnavailable(f"no answer within {READ_DEADLINE_S:g} s") from None


@contextlib.asynccontextmanager
async def open_ledger(
    url: str,
    *,
    shared: bool,
    speed: float,
    startup_timeout_s: float,
    observe_commit_s: Callable[[float], object],
) -> AsyncIterator[LedgerConnection]:
    """Open the ledger at `url`, making it where there is none, and agree with it on the simulation speed.

    `shared` tells that its users are on several hosts; a busy ledger is waited for. Raises `Misconfigured`
    for an address or a file that cannot be used, and for another speed than the ledger's sessions run at.
    """
    path = _sqlite_path(url, shared=shared)
    await asyncio.to_thread(sqlite.prepare, path, startup_timeout_s)
    committer = Committer(lambda: sqlite.SqliteDriver(path), observe_commit_s=observe_commit_s)
    reader = sqlite.SqliteReader(path)
    thread = ThreadPoolExecutor(1, "ledger-reader")
    try:
        connection = LedgerConnection(committer, reader, thread)
        await _agree_on_speed(connection, speed, startup_timeout_s)
        yield connection
    finally:
        await committer.close()
        thread.submit(reader.close)
        thread.shutdown(wait=False)


def _sqlite_path(url: str, *, shared: bool) -> Path:
    if not url.startswith(SQLITE_SCHEME):
        raise Misconfigured(
            f"EVENLOAD_LEDGER_URL: {url.split('://', maxsplit=1)[0]!r} is no ledger this version knows: "
            "give sqlite:///path/to/ledger.sqlite"
        )
    if shared:
        raise Misconfigured(
            "EVENLOAD_LEDGER_URL names a SQLite file, but EVENLOAD_LEDGER_SHARED says that several hosts use it, "
            "which would corrupt it: run all services on one host, or unset EVENLOAD_LEDGER_SHARED"
        )
    path = Path(url.removeprefix(SQLITE_SCHEME))
    if not path.name:
        raise Misconfigured(f"EVENLOAD_LEDGER_URL: {url!r} names no file: give sqlite:///path/to/ledger.sqlite")
    return path


def _speed_kept(transaction: Transaction, rows: list[Row]) -> list[Row]:
    transaction.execute(statements.AGREE_SPEED, speed=rows[0]["speed"])
    return [{"speed": rows[0]["speed"], "kept": transaction.execute(statements.SPEED)[0]["value"]}]


def _probed(transaction: Transaction, rows: list[Row]) -> list[Row]:
    transaction.execute(statements.PROBE, probe=rows[-1]["probe"])
    return []


PROBE = Operation("probe", "probe", _probed)
AGREE_ON_SPEED = Operation("agree_on_speed", "speed", _speed_kept)


async def _agree_on_speed(connection: LedgerConnection, speed: float, startup_timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + startup_timeout_s
    while True:
        try:
            answer = (await connection.write(AGREE_ON_SPEED, [{"speed": f"{speed:g}"}]))[0]
            break
        except LedgerUnavailable as error:
            if loop.time() > give_up_at:
                raise Misconfigured(f"EVENLOAD_LEDGER_URL: the ledger cannot be written: {error}") from None
            await asyncio.sleep(RETRY_PAUSE_S)
    if answer["kept"] != answer["speed"]:
        raise Misconfigured(
            f"EVENLOAD_SPEED is {answer['speed']}, but the sessions of this ledger run at {answer['kept']}: "
            f"set EVENLOAD_SPEED={answer['kept']}, or name another ledger"
        )
