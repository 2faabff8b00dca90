"""The doctor's look at a ledger, a lock and settings: what it finds, and that it leaves everything as it was."""

import fcntl
import logging
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from services.cli.checks import Check, Finding, exit_code, note, ok, with_cure, worst
from services.cli.checks_ledger import check_ledger, registered_substations
from services.cli.checks_setup import (
    check_folders,
    check_python,
    check_rabbitmq,
    check_settings,
    check_surroundings,
)
from services.cli.main import app
from services.errors import Misconfigured
from services.ledger import schema, sqlite_files, sqlite_setup
from services.local import locks
from services.local.packages import copy_dir
from services.local.ports import free_ports
from services.settings import LocalSettings


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    sqlite_setup.prepare(path, 1)
    change(path, "INSERT INTO meta VALUES ('speed', '60')")
    return path


def change(path, statement):
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()


def findings(path):
    return {one.check: one for one in check_ledger(f"sqlite:///{path}")}


def files(folder):
    return {one.name: (one.stat().st_mtime_ns, one.stat().st_size) for one in folder.iterdir()}


def test_a_sound_ledger_is_well_and_left_as_it_was(ledger, monkeypatch):
    monkeypatch.delenv("EVENLOAD_SPEED", raising=False)
    before = files(ledger.parent)

    assert {one.finding for one in findings(ledger).values()} == {Finding.OK}
    assert registered_substations(f"sqlite:///{ledger}") == []
    assert files(ledger.parent) == before


def test_a_ledger_whose_writer_was_killed_keeps_its_write_ahead_log(ledger):
    writer = (
        "import os, sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "connection.execute('UPDATE meta SET value = 99 WHERE name = \"schema_version\"'); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", writer, str(ledger)], check=True)
    before = files(ledger.parent)

    assert "99, newer" in findings(ledger)["ledger"].said
    after = files(ledger.parent)
    assert {name: after.get(name) for name in ("ledger.sqlite", "ledger.sqlite-wal")} == {
        name: before[name] for name in ("ledger.sqlite", "ledger.sqlite-wal")
    }


def test_a_ledger_that_is_not_there_is_not_made(tmp_path):
    assert findings(tmp_path / "ledger.sqlite")["ledger"].finding is Finding.NOTE
    assert registered_substations(f"sqlite:///{tmp_path / 'ledger.sqlite'}") == []
    assert files(tmp_path) == {}


@pytest.mark.parametrize(("version", "age"), [(schema.VERSION + 1, "newer"), (schema.VERSION - 1, "older")])
def test_another_schema_version_is_named_with_its_age(ledger, version, age):
    change(ledger, f"UPDATE meta SET value = '{version}' WHERE name = 'schema_version'")
    found = findings(ledger)["ledger"]

    assert found.finding is Finding.MISCONFIGURED
    assert f"version {version}, {age}" in found.said


@pytest.mark.parametrize(
    ("content", "finding"), [(b"", Finding.NOTE), (b"this is no database" * 100, Finding.MISCONFIGURED)]
)
def test_what_is_no_ledger_is_told_so_and_an_empty_file_becomes_one(tmp_path, content, finding):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)

    assert findings(path)["ledger"].finding is finding
    assert path.read_bytes() == content


def test_another_speed_is_told_with_both(ledger, monkeypatch):
    monkeypatch.setenv("EVENLOAD_SPEED", "600.0")
    found = findings(ledger)["speed"]

    assert (found.finding, found.cure.split(",")[0]) == (Finding.MISCONFIGURED, "set EVENLOAD_SPEED=60")
    assert "600" in found.said
    monkeypatch.setenv("EVENLOAD_SPEED", "60.0")
    assert findings(ledger)["speed"].finding is Finding.OK


def test_a_lock_that_somebody_stands_on_is_told_with_the_pid(ledger, monkeypatch):
    monkeypatch.setattr("services.cli.checks_ledger.HELD_LONG_S", 0.1)
    gate = os.open(sqlite_files.lock_path(ledger), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        found = findings(ledger)["ledger lock"]
    finally:
        os.close(gate)

    assert found.finding is Finding.PROBLEM
    assert f"pid {os.getpid()} " in found.said
    assert findings(ledger)["ledger lock"].finding is Finding.OK


def test_holders_of_a_lock_are_told_without_taking_it(tmp_path):
    path = tmp_path / "lock"
    assert locks.holders(path) == set()
    with path.open("w") as file:
        assert locks.holders(path) == set()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert locks.holders(path) == {os.getpid()}


def test_a_folder_that_is_made_later_is_well_if_its_parent_is_ours(tmp_path):
    checks = list(check_folders(LocalSettings(data_dir=tmp_path / "a" / "b")))

    assert {one.finding for one in checks} == {Finding.OK}
    assert files(tmp_path) == {}


def test_a_folder_that_is_a_file_cannot_be_used(tmp_path):
    (tmp_path / "a").write_text("")
    checks = {one.check: one for one in check_folders(LocalSettings(data_dir=tmp_path / "a" / "b"))}

    assert checks["data folder"].finding is Finding.MISCONFIGURED


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("EVENLOAD_FIRST_RUHS", "0", "EVENLOAD_FIRST_RUSH"),
        ("EVENLOAD_GATEWAY_GATHRE_MS", "1", "EVENLOAD_GATEWAY_GATHER_MS"),
        ("EVENLOAD_BALANCER_POLICY", "guess", "least-utilisation"),
        ("EVENLOAD_SUBSTATION_TICK_S", "99", "EVENLOAD_SUBSTATION_TICK_S"),
        ("EVENLOAD_SPEED", "fast", "EVENLOAD_SPEED"),
    ],
)
def test_a_variable_that_any_service_would_refuse_is_named_once(monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    (found,) = check_settings()

    assert found.finding is Finding.MISCONFIGURED
    assert said in f"{found.said} {found.cure}"


def test_variables_of_others_are_told_and_are_no_fault(monkeypatch):
    links = {"EVENLOAD_PORT": "tcp://10.0.0.1:80", "EVENLOAD_GATEWAY_PORT": "tcp://10.0.0.2:8080"}
    for name, value in links.items():
        monkeypatch.setenv(name, value)

    [linked, proxied] = check_surroundings(links | {"http_proxy": "http://user:do-not-print-me@proxy:3128"})

    assert {linked.finding, proxied.finding} == {Finding.NOTE}
    assert "EVENLOAD_GATEWAY_PORT, EVENLOAD_PORT" in linked.said
    assert linked.cure == "set enableServiceLinks: false in the pod's specification"
    assert proxied.said.startswith("http_proxy: ")
    assert "do-not-print-me" not in proxied.said + proxied.cure
    assert [one.finding for one in check_settings()] == [Finding.OK]
    assert list(check_surroundings({"PATH": "/bin", "http_proxy": ""})) == []


def test_a_cache_that_was_moved_is_told_and_is_no_fault(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg"):
        (programs / name).symlink_to(shutil.which("true"))
    monkeypatch.setenv("PATH", str(programs))
    settings = LocalSettings(cache_dir=tmp_path / "cache")
    assert check_rabbitmq(settings, None).said.startswith("not there yet: ")

    (copy_dir(tmp_path / "cache", "rabbitmq") / "usr").mkdir(parents=True)
    found = check_rabbitmq(settings, None)

    assert found.finding is Finding.NOTE
    assert found.said == f"the copy in {tmp_path / 'cache'} was moved, or files of it are gone"
    assert found.cure == "`make run` fetches and unpacks it anew, once"


def test_a_cache_that_cannot_be_written_is_told_while_there_is_no_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "file").write_text("")

    found = check_rabbitmq(LocalSettings(cache_dir=tmp_path / "file" / "cache"), None)

    assert found.finding is Finding.MISCONFIGURED
    assert found.said == f"no copy can be unpacked: {tmp_path / 'file'} cannot be written (it is no folder)"
    assert found.cure == "set EVENLOAD_CACHE_DIR to a folder of your own"


def test_a_data_folder_with_too_long_a_path_is_told_with_the_setting(tmp_path):
    [found] = check_folders(LocalSettings(data_dir=tmp_path / ("x" * 250) / ("y" * 250)))

    assert (found.check, found.finding) == ("data folder", Finding.MISCONFIGURED)
    assert found.said.startswith("EVENLOAD_DATA_DIR: ")
    assert found.said.endswith(" is longer than 480 bytes")
    assert found.cure == "name a folder with a shorter path"


def test_an_environment_that_was_moved_and_a_locale_of_another_encoding_are_told(tmp_path, monkeypatch):
    prefix = tmp_path / ".venv"
    prefix.mkdir()
    monkeypatch.setattr(sys, "prefix", str(prefix))
    (prefix / ".place").write_text(f"{tmp_path}\n")
    assert check_python().finding is Finding.OK

    (prefix / ".place").write_text("/elsewhere\n")
    assert check_python().said.endswith(f" in {prefix}, which was moved")
    assert check_python().cure == "`make run` makes it anew"

    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert check_python().said.endswith(", file names in ascii")
    assert "PYTHONUTF8=1" in check_python().cure


def test_sound_settings_are_well(monkeypatch):
    monkeypatch.setenv("EVENLOAD_BALANCER_POLICY", "least-load-scraped")
    (found,) = check_settings()

    assert found.finding is Finding.OK
    assert "EVENLOAD_BALANCER_POLICY" in found.said


def test_the_gravest_finding_makes_the_exit_code():
    wrong = with_cure("x", Misconfigured("A is 1: set it to 2"))
    assert wrong == Check("x", Finding.MISCONFIGURED, "A is 1", "set it to 2")
    broken = Check("x", Finding.PROBLEM, "", "")

    assert [exit_code(worst(one)) for one in ([ok("x", "")], [note("x", ""), ok("x", "")], [broken, ok("x", "")],
                                              [wrong, broken, ok("x", "")])] == [0, 0, 1, 2]  # fmt: skip


def test_the_doctor_leaves_the_logs_of_its_process_as_they_were(tmp_path):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    CliRunner(env={"EVENLOAD_DATA_DIR": str(tmp_path)}).invoke(app, ["doctor", "--json", "--url", url])

    assert logging.getLogger("tests").isEnabledFor(logging.ERROR)
