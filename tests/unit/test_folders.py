"""Where data and caches lie, whoever asks and from where, and what is said of files that cannot be used."""

import errno
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.output import leave_with
from services.errors import Misconfigured
from services.local.folders import cache_dir, data_folder
from services.local.stack import up
from services.settings import LocalSettings


def unknown(_uid):
    raise KeyError


@pytest.mark.parametrize("variables", [{}, {"XDG_CACHE_HOME": "relative"}, {"HOME": ""}, {"HOME": "/"}], ids=str)
def test_a_user_without_a_home_has_a_cache_in_the_data_folder(tmp_path, monkeypatch, variables):
    for name in ("HOME", "XDG_CACHE_HOME", "EVENLOAD_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pwd.getpwuid", unknown)

    assert cache_dir(LocalSettings(data_dir=tmp_path)) == tmp_path / "cache"


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/evenload"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/cache"}, "/cache/evenload"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "relative"}, "/home/a/.cache/evenload"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/cache", "EVENLOAD_CACHE_DIR": "/own"}, "/own"),
    ],
)
def test_a_cache_lies_where_the_user_keeps_caches(monkeypatch, variables, folder):
    for name in ("HOME", "XDG_CACHE_HOME", "EVENLOAD_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert str(cache_dir(LocalSettings())) == folder


def test_a_data_folder_is_known_by_one_path(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)

    assert data_folder(LocalSettings(data_dir="link/data")) == tmp_path / "real/data"


@pytest.mark.parametrize("command", [("break", "north"), ("dead",), ("mend",), ("doctor", "--json")], ids=str)
def test_a_loop_of_links_ends_no_command_with_a_trace(tmp_path, command):
    (tmp_path / "a").symlink_to("a")

    done = CliRunner(env={"EVENLOAD_DATA_DIR": str(tmp_path / "a")}).invoke(app, command)

    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert "a leads through a loop of symbolic links" in done.output


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FileNotFoundError(errno.ENOENT, "No file", "a"), "a cannot be used (No file): see that it is there, or name "),
        (OSError(errno.EISDIR, "A folder", "a"), "a cannot be used (A folder): name another"),
        (OSError(errno.ENOSPC, "No room", b"a"), "a cannot be used (No room): free some room there"),
        (OSError(errno.EDQUOT, "Quota", "a"), "a cannot be used (Quota): free some room there, or raise this user's"),
        (OSError(errno.EFBIG, "Too large", "a"), "a cannot be used (Too large): allow this user larger files (`ulimit"),
        (OSError(errno.EROFS, "Read-only", "a"), "a cannot be used (Read-only): mount it for writing, or name another"),
        (
            OSError(errno.EMFILE, "Too many", "a"),
            "a cannot be used (Too many): allow this process more open files",
        ),
        (OSError(errno.ENFILE, "Overflow", "a"), "a cannot be used (Overflow): end other programs, or allow the mach"),
        (OSError(errno.EMFILE, "Too many"), "no further file can be opened (Too many): allow this process more"),
        (
            OSError(errno.EMFILE, "Too many", 7),
            "no further file can be opened (Too many): allow this process more",
        ),
        (
            PermissionError(errno.EACCES, "Denied", "/nowhere/a"),
            "/nowhere/a cannot be used (Denied; / belongs to ",
        ),
    ],
    ids=lambda one: str(one) if isinstance(one, OSError) else "",
)
def test_an_error_of_a_file_that_nobody_expected_is_told_in_one_line(capsys, error, said):
    def work():
        raise error

    with pytest.raises(SystemExit) as ended:
        leave_with(work)

    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"evenload: {said}")


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (errno.EACCES, "give it to this user, or name a folder of your own"),
        (errno.ENOSPC, "free some room there"),
        (errno.EMFILE, "allow this process more open files (`ulimit -n`)"),
        (errno.ENOENT, "see that it is there, or name another"),
    ],
)
def test_a_file_of_the_data_folder_that_the_stack_cannot_use_is_told_with_its_own_cure(
    tmp_path, monkeypatch, code, cure
):
    def broken(data, _run):
        raise OSError(code, "Broken", str(data / "logs"))

    monkeypatch.setattr("services.local.leftovers.of_other_runs", broken)
    with pytest.raises(Misconfigured) as told:
        up(LocalSettings(data_dir=tmp_path), print, print, print)

    assert str(told.value).startswith(f"EVENLOAD_DATA_DIR: {tmp_path}/logs cannot be used (Broken")
    assert str(told.value).endswith(f"): {cure}")


def test_a_descriptor_that_the_stack_cannot_use_is_no_file_of_the_data_folder(tmp_path, monkeypatch):
    def broken(_data, _run):
        raise OSError(errno.EBADF, "Broken", 7)

    monkeypatch.setattr("services.local.leftovers.of_other_runs", broken)
    with pytest.raises(OSError, match="Broken"):
        up(LocalSettings(data_dir=tmp_path), print, print, print)


def test_an_error_that_names_no_file_keeps_its_trace():
    for error in (ConnectionResetError(errno.ECONNRESET, "reset"), OSError(errno.EBADF, "Bad descriptor", 7)):

        def work(error=error):
            raise error

        with pytest.raises(type(error)):
            leave_with(work)


def with_key_log(program, file):
    command = [sys.executable, "-P", "-m", program, "--help"]
    environment = {**os.environ, "SSLKEYLOGFILE": str(file), "EVENLOAD_AMQP_URL": "", "EVENLOAD_LEDGER_URL": ""}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("program", ["services.cli", "gateway", "balancer", "substations"])
def test_a_key_log_that_cannot_be_written_is_told_by_its_variable(tmp_path, program):
    done = with_key_log(program, tmp_path / "nowhere/keys")

    name = {"services.cli": "evenload"}.get(program, program)
    assert done.returncode == 2
    assert done.stderr == (
        f"{name}: SSLKEYLOGFILE: '{tmp_path}/nowhere/keys' cannot be written (No such file or directory): "
        "name a file that this user may write, or unset it\n"
    )


@pytest.mark.parametrize("folder", ["nowhere", ""])
def test_metrics_that_other_programs_share_are_not_ours(tmp_path, folder):
    command = (
        "import sys\nfrom services import surroundings\nsurroundings.settle('gateway')\n"
        "from prometheus_client import CollectorRegistry, Counter\n"
        "Counter('a', 'b', registry=CollectorRegistry()).inc()"
    )
    for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        environment = {**os.environ, name: str(tmp_path / folder)}
        subprocess.run([sys.executable, "-P", "-c", command], env=environment, timeout=60, check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_key_log_that_can_be_written_is_in_nobodys_way(tmp_path):
    assert with_key_log("services.cli", tmp_path / "keys").returncode == 0
