"""A process's connection to the ledger: one writer that commits in groups, one reader; opened by address."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger import sqlite, sqlite_setup, statements
from services.ledger.address import SETTING, sqlite_path
from services.ledger.committer import Answer, Committer, Driver, Operation, Reader, Row, Transaction
from services.ledger.identity import NAME, Seen, Sight, new_id
from services.ledger.probing import PROBE
from services.logs import get_logger

log = get_logger(__name__)

READ_DEADLINE_S = 5.0
RETRY_PAUSE_S = 0.5
CLOSE_DEADLINE_S = 10.0
"""Longer than a drain may last: a process that cannot close its ledger must say that its drain was cut short."""
INTERRUPT_PAUSE_S = 0.05
READER_DEADLINE_S = 5.0
"""A part of `CLOSE_DEADLINE_S`: a read that does not end must leave time to close the writer."""


class LedgerConnection:
    """Where the views of the ledger write and read."""

    def __init__(self, committer: Committer, reader: Reader, thread: ThreadPoolExecutor) -> None:
        self._committer = committer
        self._reader = reader
        self._thread = thread
        self._lost: str | None = None

    @property
    def fault(self) -> str | None:
        """Why the ledger could not be read at the last look, or written at the last try; None while all is well."""
        return self._lost or self._committer.fault

    async def look(self) -> None:
        """See whether the ledger is there, and still the one that was opened; `fault` tells."""
        try:
            # Without a read's deadline: a look that waits for slow reads tells nothing. The drivers have their own.
            await self._run(lambda _transaction: None)
            self._lost = None
        except LedgerUnavailable as error:
            self._lost = str(error)

    async def probe(self, role: str = "") -> None:
        """Write something that changes with every call, and try what a `role` needs; raises `LedgerUnavailable`."""
        await self.write(PROBE, [{"probe": uuid.uuid4().hex, "role": role}])

    async def write(self, operation: Operation, rows: list[Row]) -> list[Row]:
        """Commit rows together with whatever else is pending; raises `LedgerUnavailable`."""
        return await self._committer.submit(operation, rows)

    async def read(self, work: Callable[[Transaction], Answer]) -> Answer:
        """Run `work` on one snapshot, off the event loop; raises `LedgerUnavailable`."""
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                return await self._run(work)
        except TimeoutError:
            raise LedgerUnavailable(f"no answer within {READ_DEADLINE_S:g} s") from None

    async def _run(self, work: Callable[[Transaction], Answer]) -> Answer:
        answer: Answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._reader.read, work)
        return answer


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
        ledger_id = await _agree(connection, {"speed": f"{speed:g}", "lease_s": f"{lease_s:g}"}, startup_timeout_s)
        database.seen.note(Sight(ledger_id, None))
        await connection.look()  # opens the reader's files while they are sure to be the right ones
        # An address may be relative, or lead elsewhere than it seems.
        log.info("ledger_opened", place=database.seen.place, ledger_id=ledger_id)
        yield connection
    finally:
        # One after the other: the last that closes copies SQLite's log into the file, and only then the log goes.
        reader_closed = asyncio.wrap_future(thread.submit(reader.close))
        thread.shutdown(wait=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_DEADLINE_S):
                await _end_reads(reader, reader_closed)
                await committer.close()


async def _end_reads(reader: Reader, closed: asyncio.Future[None]) -> None:
    """Interrupt what is read, for which nobody waits any more, until the reader is closed or its time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READER_DEADLINE_S):
            while not closed.done():
                reader.interrupt()  # each time one statement, and others may follow
                await asyncio.wait({closed}, timeout=INTERRUPT_PAUSE_S)


@dataclass(frozen=True)
class _Database:
    """What the address chose."""

    seen: Seen
    prepare: Callable[[float], None]
    """Make the ledger where there is none, refuse what is none; waits so long [s]."""
    open_driver: Callable[[], Driver]
    open_reader: Callable[[], Reader]


def _database(url: str, *, shared: bool) -> _Database:
    path = sqlite_path(url)
    if path is None:
        # Here, because a SQLite ledger starts faster without.
        from services.ledger import postgres, postgres_identity, postgres_setup

        address = postgres_setup.parse_address(url)
        seen = postgres_identity.seen_at(postgres_setup.place(address))
        return _Database(
            seen,
            partial(postgres_setup.prepare, address),
            lambda: postgres.PostgresDriver(address, seen),
            lambda: postgres.PostgresReader(address, seen),
        )
    if shared:
        raise Misconfigured(
            f"{SETTING} names a SQLite file, but EVENLOAD_LEDGER_SHARED says that several hosts use it, "
            "which would corrupt it: name a PostgreSQL database, or run all services on one host "
            "and unset EVENLOAD_LEDGER_SHARED"
        )
    seen = sqlite_setup.seen_at(path)
    return _Database(
        seen,
        lambda seconds: seen.note(sqlite_setup.prepare(path, seconds)),
        lambda: sqlite.SqliteDriver(path, seen),
        lambda: sqlite.SqliteReader(path, seen),
    )


def _agreed(transaction: Transaction, rows: list[Row]) -> list[Row]:
    wished = [[row["name"], row["value"]] for row in rows]
    transaction.execute(statements.AGREE, wished)
    return transaction.execute(statements.AGREED, wished)


AGREE = Operation("agree", "name", _agreed, may_split=False)


async def _agree(connection: LedgerConnection, wished: Mapping[str, str], startup_timeout_s: float) -> str:
    """Hold this process's values against those of the ledger's first user; raises `Misconfigured`.

    Returns the ledger's id, which its first user makes.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + startup_timeout_s
    while True:
        try:
            agreed = {**wished, NAME: new_id()}
            rows = await connection.write(AGREE, [{"name": name, "value": value} for name, value in agreed.items()])
            break
        except LedgerUnavailable as error:
            if loop.time() > give_up_at:
                raise Misconfigured(f"{SETTING}: the ledger cannot be written: {error}") from None
            await asyncio.sleep(RETRY_PAUSE_S)
    kept = {row["name"]: row["value"] for row in rows}
    for name, value in wished.items():
        if kept[name] != value:
            raise Misconfigured(
                f"EVENLOAD_{name.upper()} is {value}, but this ledger is used with {kept[name]}: "
                f"set EVENLOAD_{name.upper()}={kept[name]}, or name another ledger"
            )
    return str(kept[NAME])
