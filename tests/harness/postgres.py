"""A real PostgreSQL of the tests' own, run as an ordinary user, with a fresh database for whoever asks."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from harness.suites import SUITE, copy_of, of_suite, use_own_libraries

from services.ledger import schema
from services.local import leftovers
from services.local.folders import cache_dir
from services.local.packages import PackageSet, copy_dir, libraries, obtain
from services.local.ports import free_ports
from services.settings import LocalSettings

OWNER = "postgres"
PASSWORD = "tests-own"
LEDGER_TEMPLATE = "ledger_template"
READY_WITHIN_S = 60
PROGRAMS = "usr/lib/postgresql/*/bin"
CURES = (
    "install PostgreSQL (Debian: apt install postgresql), "
    "or run this on a Debian-like system with access to its package archive"
)
PACKAGES = PackageSet(
    title="PostgreSQL",
    package="postgresql",
    cures=CURES,
    own_copies=("postgresql-", "libpq5"),
    # The server and its libraries; not what sets one up for a whole system, and no compiler.
    is_wanted=lambda name: name.startswith(("postgresql-", "lib")) and not name.startswith(("libllvm", "libclang")),
)


@dataclass(frozen=True)
class Programs:
    """The folder with `initdb` and `postgres`, and the environment that they need."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    copy: Path | None = None
    """The unpacked packages that they lie in, where they are not installed."""


@dataclass(frozen=True)
class Server:
    """A running server, its owner's password `PASSWORD`."""

    port: int
    pid: int
    home: Path
    """The folder that is removed at the end."""
    command: dict[str, Any] = field(default_factory=dict)
    """What starts it again, for `subprocess.Popen`."""
    started_again: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """By tests; they end with the first one."""

    def url(self, database: str = "postgres", user: str = OWNER, password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)


def find_postgres(*, unpacked: bool = False) -> Programs:
    """The installed PostgreSQL, else (or where `unpacked` is asked for) a private copy in the cache.

    Where the tests were told a suite, it is that suite's.
    """
    if SUITE:
        copy = copy_of("postgresql", SUITE)
        return Programs(obtain(of_suite(PACKAGES, SUITE, "postgresql-"), copy, _newest, print, {}), copy=copy)
    installed = None if unpacked else _newest(Path("/"))
    if installed is not None:
        return Programs(installed)
    copy = copy_dir(cache_dir(LocalSettings()), "postgresql")
    return Programs(obtain(PACKAGES, copy, _newest, print, {}), {"LD_LIBRARY_PATH": libraries(copy)}, copy)


def _newest(root: Path) -> Path | None:
    found = [one for one in root.glob(PROGRAMS) if (one / "postgres").exists() and (one / "initdb").exists()]
    return max(found, key=lambda one: float(one.parent.name), default=None)


@contextlib.contextmanager
def running_postgres(programs: Programs, *settings: str) -> Iterator[Server]:
    """Start a private server, and take it down with everything it started; `settings` like `fsync=on` come last."""
    with tempfile.TemporaryDirectory(prefix="evenload-postgres-") as folder:
        home = Path(folder)
        programs = _reachable(programs, home)
        password = home / "password"
        password.write_text(PASSWORD)
        give_to_ordinary_user(home, password)
        initdb = as_ordinary_user(programs, "initdb", "-D", home / "data", "-U", OWNER, "-A", "scram-sha-256",
                                  f"--pwfile={password}", "-E", "UTF8", "--no-locale", "--no-sync")  # fmt: skip
        made = subprocess.run(**initdb, capture_output=True, text=True, timeout=READY_WITHIN_S, check=False)
        assert made.returncode == 0, made.stderr
        with _serving(programs, home, settings) as server:
            yield server


@contextlib.contextmanager
def running_standby(programs: Programs, primary: Server) -> Iterator[Server]:
    """Start a server that follows `primary` by streaming replication, read-only until it is promoted."""
    with tempfile.TemporaryDirectory(prefix="evenload-standby-") as folder:
        home = Path(folder)
        programs = _reachable(programs, home)
        give_to_ordinary_user(home)
        copy = as_ordinary_user(programs, "pg_basebackup", "-D", home / "data", "-R", "-c", "fast", "--no-sync",
                                "-d", primary.url())  # fmt: skip
        made = subprocess.run(**copy, capture_output=True, text=True, timeout=READY_WITHIN_S, check=False)
        assert made.returncode == 0, made.stderr
        with _serving(programs, home, ()) as server:
            yield server


@contextlib.contextmanager
def _serving(programs: Programs, home: Path, settings: Sequence[str]) -> Iterator[Server]:
    [port] = free_ports(1)
    options = [f"port={port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off",
               "shared_buffers=64MB", *settings]  # fmt: skip
    words = (word for one in options for word in ("-c", one))
    serve = as_ordinary_user(programs, "postgres", "-D", home / "data", *words)
    with guarded(serve, home) as process:
        server = Server(port, process.pid, home, serve)
        wait_until_it_answers(server.url(), process, home)
        try:
            yield server
        finally:
            for one in server.started_again:
                _end(one)


@contextlib.contextmanager
def guarded(serve: dict, home: Path) -> Iterator[subprocess.Popen]:
    """Run what `as_ordinary_user` gave, with its output in `home`. It does not outlive tests that are killed."""
    run = uuid.uuid4().hex
    serve["env"] |= leftovers.marks(home, run)
    guardian = subprocess.Popen(
        [sys.executable, "-m", "services.local.guardian", run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(**serve, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        _end(process)
        guardian.stdin.close()
        guardian.wait(30)


def _end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)  # at once, whoever is connected
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_it_answers(url: str, process: subprocess.Popen, home: Path) -> None:
    give_up_at = time.monotonic() + READY_WITHIN_S
    while psycopg.pq.PGconn.ping(url.encode()) != psycopg.pq.Ping.OK:
        assert process.poll() is None, f"it ended: {(home / 'log').read_text()[-2000:]}"
        assert time.monotonic() < give_up_at, f"it is not ready: {(home / 'log').read_text()[-2000:]}"
        time.sleep(0.05)


def give_to_ordinary_user(*paths: Path) -> None:
    """Root's files belong to root; what is run as an ordinary user needs its own."""
    if os.geteuid() == 0:
        for one in paths:
            shutil.chown(one, "nobody")


def _reachable(programs: Programs, home: Path) -> Programs:
    """The programs where an ordinary user may read them: root's own cache is closed to everybody else."""
    copy = programs.copy
    if os.geteuid() != 0 or copy is None:
        return programs
    for part in copy.glob("usr/lib/*"):
        shutil.copytree(part, home / "programs/usr/lib" / part.name, symlinks=True)
    shutil.copytree(copy / "usr/share/postgresql", home / "programs/usr/share/postgresql", symlinks=True)
    folder = home / "programs" / programs.folder.relative_to(copy)
    if SUITE:
        use_own_libraries(home / "programs", home / "programs")
        return Programs(folder)
    return Programs(folder, {"LD_LIBRARY_PATH": libraries(home / "programs")})


def as_ordinary_user(programs: Programs, program: str, *arguments: object) -> dict:
    """What starts a program, as an ordinary user: PostgreSQL and PgBouncer refuse to be run by root."""
    ordinary = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {
        "args": [*ordinary, str(programs.folder / program), *map(str, arguments)],
        "env": {**kept, **programs.environment, "LC_ALL": "C"},
        "stdin": subprocess.DEVNULL,
        "cwd": "/",
    }


def make_ledger_template(server: Server) -> None:
    """Make the database that databases with a ledger are copied from."""
    server.execute(f"CREATE DATABASE {LEDGER_TEMPLATE}")
    with psycopg.connect(server.url(LEDGER_TEMPLATE), autocommit=True) as connection:
        for statement in schema.POSTGRES:
            connection.execute(statement)


@contextlib.contextmanager
def fresh_database(server: Server, *, with_ledger: bool = False) -> Iterator[str]:
    """The address of a database, as its owner: an empty one, or one with the ledger's tables and no rows."""
    name = f"t{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}" + f" TEMPLATE {LEDGER_TEMPLATE}" * with_ledger)
    try:
        yield server.url(name)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


class LedgerDatabases:
    """Databases with the ledger's tables and no rows, lent to one test after the other.

    To make and drop a database costs a quarter of a second of CPU, to empty one a tenth of that.
    """

    def __init__(self, server: Server, made: contextlib.ExitStack) -> None:
        self._server = server
        self._made = made
        self._free: list[str] = []

    @contextlib.contextmanager
    def lent(self) -> Iterator[str]:
        """The address of one, as its owner. One whose tables were changed meanwhile is lent to nobody else."""
        if not self._free:
            url = self._made.enter_context(fresh_database(self._server, with_ledger=True))
            empty_ledger(url)
            self._free.append(url)
        url = self._free.pop()
        before = _definitions(url)
        yield url
        if _definitions(url) == before:
            empty_ledger(url)
            self._free.append(url)


def empty_ledger(url: str) -> None:
    """Delete all rows, and end all other connections to the database."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        # Not TRUNCATE, which makes new files for every table and index.
        connection.execute(
            "WITH a AS (DELETE FROM request), b AS (DELETE FROM transition), c AS (DELETE FROM substation), "
            "d AS (DELETE FROM meta WHERE name <> 'schema_version'), e AS (UPDATE probe SET value = '') "
            "SELECT setval('request_arrival_seq', 1, false), setval('transition_number_seq', 1, false)"
        )


def _definitions(url: str) -> list[tuple]:
    """All tables, columns, functions, triggers and rights, and the schema's version."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(
            """
            SELECT c.relname, c.relacl::text, a.attname, a.atttypid::text FROM pg_class AS c
            LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE c.relnamespace = 'public'::regnamespace
            UNION ALL SELECT proname, proacl::text, prosrc, '' FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT tgname, tgenabled::text, tgrelid::regclass::text, '' FROM pg_trigger
            UNION ALL SELECT name, value, '', '' FROM meta WHERE name = 'schema_version'
            ORDER BY 1, 2, 3, 4
            """
        ).fetchall()
