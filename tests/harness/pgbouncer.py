"""A real PgBouncer of the tests' own before their PostgreSQL, and its admin console."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from harness.postgres import (
    OWNER,
    PASSWORD,
    Programs,
    as_ordinary_user,
    give_to_ordinary_user,
    guarded,
    wait_until_it_answers,
)

from services.local.folders import cache_dir
from services.local.packages import PackageSet, copy_dir, libraries, obtain
from services.local.ports import free_ports
from services.settings import LocalSettings

PROGRAM = "pgbouncer"
PACKAGES = PackageSet(
    title="PgBouncer",
    package="pgbouncer",
    cures="install PgBouncer (Debian: apt install pgbouncer)",
    own_copies=("pgbouncer",),
    is_wanted=lambda name: name.startswith(("pgbouncer", "lib")),
)


@dataclass(frozen=True)
class Bouncer:
    """A running PgBouncer, for every database of the server behind it."""

    port: int
    pid: int
    home: Path

    def before(self, url: str) -> str:
        """The address of a database of the server, asked for here."""
        return f"postgresql://{OWNER}:{PASSWORD}@127.0.0.1:{self.port}/{url.rpartition('/')[2]}"

    def command(self, command: str) -> None:
        """Say something to the admin console: `PAUSE`, `RESUME`, `RELOAD`."""
        with psycopg.connect(self.before("/pgbouncer"), autocommit=True, cursor_factory=psycopg.ClientCursor) as admin:
            admin.execute(command)

    def end(self) -> None:
        """End it at once, as `kill -TERM` does."""
        os.kill(self.pid, signal.SIGTERM)


def find_pgbouncer() -> Programs:
    """The installed PgBouncer, else a private copy in the cache."""
    installed = _folder(Path("/"))
    if installed is not None:
        return Programs(installed)
    copy = copy_dir(cache_dir(LocalSettings()), PROGRAM)
    return Programs(obtain(PACKAGES, copy, _folder, print, {}), {"LD_LIBRARY_PATH": libraries(copy)})


def _folder(root: Path) -> Path | None:
    folder = root / "usr/sbin"
    return folder if (folder / PROGRAM).exists() else None


@contextlib.contextmanager
def running_pgbouncer(
    programs: Programs, server_port: int, pool_mode: str, port: int = 0, **settings: object
) -> Iterator[Bouncer]:
    """Start one before the server at `server_port`; `settings` are PgBouncer's own."""
    with tempfile.TemporaryDirectory(prefix="evenload-pgbouncer-") as folder:
        home = Path(folder)
        port = port or free_ports(1)[0]
        written = {
            "listen_addr": "127.0.0.1", "listen_port": port, "unix_socket_dir": "", "auth_type": "scram-sha-256",
            "auth_file": home / "users", "admin_users": OWNER, "pool_mode": pool_mode, **settings,
        }  # fmt: skip
        users, configuration = home / "users", home / "pgbouncer.ini"
        users.write_text(f'"{OWNER}" "{PASSWORD}"\n')
        configuration.write_text(
            "\n".join(
                [
                    f"[databases]\n* = host=127.0.0.1 port={server_port}\n[pgbouncer]",
                    *(f"{name} = {value}" for name, value in written.items()),
                ]
            )
        )
        give_to_ordinary_user(home, users, configuration)
        serve = as_ordinary_user(_reachable(programs, home), PROGRAM, configuration)
        with guarded(serve, home) as process:
            bouncer = Bouncer(port, process.pid, home)
            wait_until_it_answers(bouncer.before("/pgbouncer"), process, home)
            yield bouncer


def _reachable(programs: Programs, home: Path) -> Programs:
    """The program where an ordinary user may read it: root's own cache is closed to everybody else."""
    if os.geteuid() != 0 or not programs.environment:
        return programs
    copy = programs.folder.parents[1]
    shutil.copytree(copy, home / "programs", symlinks=True)
    return Programs(home / "programs/usr/sbin", {"LD_LIBRARY_PATH": libraries(home / "programs")})
