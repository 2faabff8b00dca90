"""The tests' own PostgreSQL: had from packages where none is installed, and gone when the tests are."""

import os
import shutil
import subprocess
import sys
import time

import psutil
import psycopg
import pytest
from harness.ledger import Ledger, opened
from harness.postgres import PACKAGES, find_postgres, fresh_database, running_postgres

from services.errors import Misconfigured
from services.local import packages
from services.local.packages import obtain

GONE_WITHIN_S = 60


async def test_a_copy_unpacked_from_packages_keeps_a_ledger():
    programs = find_postgres(unpacked=True)
    assert not str(programs.folder).startswith("/usr")

    with running_postgres(programs, "fsync=on") as server, fresh_database(server) as url:
        with psycopg.connect(url) as connection:
            used = dict(connection.execute("SELECT name, setting FROM pg_config").fetchall())
        assert not [used[one] for one in ("BINDIR", "PKGLIBDIR", "SHAREDIR") if used[one].startswith("/usr")]
        async with opened(url) as connection:
            await Ledger(connection).accepted("r")
            assert await Ledger(connection).status("r") == "accepted"

    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    assert not server.home.exists()


def test_where_nothing_can_be_unpacked_the_cures_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "find_program", lambda *_asked: None)

    with pytest.raises(Misconfigured, match=r"there is no PostgreSQL here, .*: install PostgreSQL \(Debian: apt"):
        obtain(PACKAGES, tmp_path / "copy", lambda _copy: None, print, {})


SERVES = """
import time
from harness.postgres import find_postgres, running_postgres
with running_postgres(find_postgres()) as server:
    print(server.pid, server.home, flush=True)
    time.sleep(600)
"""


def test_a_server_of_tests_that_were_killed_does_not_stay():
    started = subprocess.Popen(
        [sys.executable, "-c", SERVES],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with started:
        *_, pid, home = started.stdout.readline().split()
        server = psutil.Process(int(pid))
        family = [server, *server.children(recursive=True)]
        started.kill()

        give_up_at = time.monotonic() + GONE_WITHIN_S
        while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family):
            assert time.monotonic() < give_up_at
            time.sleep(0.1)
    shutil.rmtree(home)
