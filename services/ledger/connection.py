"""A process's connection to the ledger: one writer that commits in groups, one reader; opened by address."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger import sqlite, statements
from services.ledger.committer import Answer, Committer, Driver, Operation, Reader, Row, Transaction

SQLITE_SCHEME = "sqlite:///"
POSTGRES_SCHEMES = ("postgresql://", "postgres://")
READ_DEADLINE_S = 5.0
RETRY_PAUSE_S = 0.5


class LedgerConnection:
    """Where the views of the ledger write and read."""

    def __init__(self, committer: Committer, reader: Reader, thread: ThreadPoolExecutor) -> None:
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
    lease_s: float,
    startup_timeout_s: float,
    observe_commit_s: Callable[[float], object],
) -> AsyncIterator[LedgerConnection]:
    """Open the ledger at `url`, making it where there is none, and agree with it on speed and lease.

    `shared` tells that its users are on several hosts; a busy ledger is waited for. Raises `Misconfigured`
    for an address or a file that cannot be used, and for another speed or lease than the ledger's first user's.
    """
    database = _database(url, shared=shared)
    await asyncio.to_thread(database.prepare, startup_timeout_s)
    committer = Committer(database.open_driver, observe_commit_s=observe_commit_s)
    reader = database.open_reader()
    thread = ThreadPoolExecutor(1, "ledger-reader")
    try:
        connection = LedgerConnection(committer, reader, thread)
        await _agree(connection, {"speed": f"{speed:g}", "lease_s": f"{lease_s:g}"}, startup_timeout_s)
        yield connection
    finally:
        await committer.close()
        thread.submit(reader.close)
        thread.shutdown(wait=False)


@dataclass(frozen=True)
class _Database:
    """What the address chose."""

    prepare: Callable[[float], None]
    """Make the ledger where there is none, refuse what is none; waits so long [s]."""
    open_driver: Callable[[], Driver]
    open_reader: Callable[[], Reader]


def _database(url: str, *, shared: bool) -> _Database:
    if url.startswith(POSTGRES_SCHEMES):
        # Here, because a SQLite ledger starts faster without.
        from services.ledger import postgres, postgres_setup

        address = postgres_setup.parse_address(url)
        return _Database(
            partial(postgres_setup.prepare, address),
            lambda: postgres.PostgresDriver(address),
            lambda: postgres.PostgresReader(address),
        )
    if not url.startswith(SQLITE_SCHEME):
        scheme, separator, _ = url.partition("://")
        what = repr(scheme) if separator else "its value"  # which may be a secret that went into the wrong place
        raise Misconfigured(
            f"EVENLOAD_LEDGER_URL: {what} is no ledger this version knows: "
            "give sqlite:///path/to/ledger.sqlite or postgresql://user:password@host:port/database"
        )
    if shared:
        raise Misconfigured(
            "EVENLOAD_LEDGER_URL names a SQLite file, but EVENLOAD_LEDGER_SHARED says that several hosts use it, "
            "which would corrupt it: name a PostgreSQL database, or run all services on one host "
            "and unset EVENLOAD_LEDGER_SHARED"
        )
    path = _sqlite_path(url)
    return _Database(
        partial(sqlite.prepare, path), lambda: sqlite.SqliteDriver(path), lambda: sqlite.SqliteReader(path)
    )


def _sqlite_path(url: str) -> Path:
    path = Path(url.removeprefix(SQLITE_SCHEME))
    if not path.name:
        raise Misconfigured(f"EVENLOAD_LEDGER_URL: {url!r} names no file: give sqlite:///path/to/ledger.sqlite")
    return path


def _agreed(transaction: Transaction, rows: list[Row]) -> list[Row]:
    wished = [[row["name"], row["value"]] for row in rows]
    transaction.execute(statements.AGREE, wished)
    return transaction.execute(statements.AGREED, wished)


AGREE = Operation("agree", "name", _agreed)


def _probed(transaction: Transaction, rows: list[Row]) -> list[Row]:
    transaction.execute(statements.PROBE, probe=rows[-1]["probe"])
    return []


PROBE = Operation("probe", "probe", _probed)


async def _agree(connection: LedgerConnection, wished: Mapping[str, str], startup_timeout_s: float) -> None:
    """Hold this process's values against those of the ledger's first user; raises `Misconfigured`."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + startup_timeout_s
    while True:
        try:
            rows = await connection.write(AGREE, [{"name": name, "value": value} for name, value in wished.items()])
            break
        except LedgerUnavailable as error:
            if loop.time() > give_up_at:
                raise Misconfigured(f"EVENLOAD_LEDGER_URL: the ledger cannot be written: {error}") from None
            await asyncio.sleep(RETRY_PAUSE_S)
    for row in rows:
        name, kept = row["name"], row["value"]
        if kept != wished[name]:
            raise Misconfigured(
                f"EVENLOAD_{name.upper()} is {wished[name]}, but this ledger is used with {kept}: "
                f"set EVENLOAD_{name.upper()}={kept}, or name another ledger"
            )
