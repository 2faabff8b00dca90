"""Commands of a user who may not enter, read or write what others own: one line with the cause and the cure."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from services.local.packages import copy_dir

IS_ROOT = os.geteuid() == 0
# Root as a user like any other: what is not its own is closed to it. Its own Python may lie where others do not reach.
ORDINARY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"] if IS_ROOT else []
NAMELESS = 4711
OWNER = f"uid {NAMELESS}" if IS_ROOT else ""
ENDS_WITHIN_S = 60
NODE = (
    "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server",
    "usr/lib/erlang/erts-13/bin/epmd",
    "usr/lib/erlang/bin/erl",
)


@pytest.fixture
def foreign():
    """Gives a file or folder to a user without a name; where root does not run the tests, closes it at least."""
    closed = []

    def give(path, mode=0o700):
        closed.append((path, path.stat().st_mode))
        path.chmod(mode if IS_ROOT else 0)
        if IS_ROOT:
            os.chown(path, NAMELESS, NAMELESS)
        return path

    yield give
    for path, mode in closed:
        path.chmod(mode)


@pytest.fixture
def evenload(tmp_path, port):
    """Runs a command in an environment of its own, with tools that unpack nothing."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "dpkg"):
        (tools / name).symlink_to(shutil.which("true"))
    own = {
        "HOME": str(tmp_path),
        "PATH": str(tools),
        "EVENLOAD_DATA_DIR": str(tmp_path / "data"),
        "EVENLOAD_GATEWAY_PORT": str(port),
        "EVENLOAD_FIRST_RUSH": "0",
    } | {name: value for name, value in os.environ.items() if name == "PYTHONPATH"}  # of a broken copy that is tried

    def run(*arguments, **environment):
        return subprocess.run(
            [*(shutil.which(one) or one for one in ORDINARY), sys.executable, "-P", "-m", "services.cli", *arguments],
            env=own | {name: value.format(PATH=own["PATH"]) for name, value in environment.items()},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=ENDS_WITHIN_S,
            check=False,
        )

    return run


def refused(done):
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    return done.stderr.removesuffix("\n")


def found(done, check):
    assert done.stderr == ""
    [one] = [one for one in json.loads(done.stdout)["checks"] if one["check"] == check]
    return one["said"], one["cure"]


def test_a_folder_on_the_path_that_cannot_be_entered_is_passed_over(evenload, foreign, tmp_path):
    (tmp_path / "closed/bin").mkdir(parents=True)
    foreign(tmp_path / "closed")

    done = evenload("doctor", "--json", PATH=f"{tmp_path}/closed/bin:{tmp_path}/closed:{{PATH}}")

    assert found(done, "rabbitmq") == ("not there yet: `make run` fetches and unpacks a copy, once", "")


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "EVENLOAD_CACHE_DIR"])
def test_a_cache_below_a_closed_folder_is_told_with_the_setting(evenload, foreign, tmp_path, variable):
    (tmp_path / "closed").mkdir()
    foreign(tmp_path / "closed")
    place = {variable: str(tmp_path / "closed/own")}
    cache = {"HOME": "own/.cache/evenload", "XDG_CACHE_HOME": "own/evenload"}.get(variable, "own")

    looked = evenload("doctor", "--json", **place)
    started = evenload("up", **place)

    fault = f"no copy can be unpacked: {tmp_path}/closed cannot be written (it belongs to {OWNER}"
    for check in ("rabbitmq", "prometheus"):
        said, cure = found(looked, check)
        assert said.startswith(fault)
        assert cure == "set EVENLOAD_CACHE_DIR to a folder of your own"
    assert started.returncode == 2
    *_, told = started.stderr.splitlines()
    assert told == (
        f"evenload: EVENLOAD_CACHE_DIR: {tmp_path}/closed/{cache} cannot be written (Permission denied): "
        "name a folder of your own"
    )


def test_a_data_folder_of_somebody_else_is_told_with_its_owner(evenload, foreign, tmp_path):
    (tmp_path / "data/logs").mkdir(parents=True)
    foreign(tmp_path / "data", 0o755)

    said, cure = found(evenload("doctor", "--json"), "data folder")
    told = refused(evenload("up"))

    assert said.startswith(f"{tmp_path}/data cannot be written (it belongs to {OWNER}")
    assert cure == "give it to this user, or set EVENLOAD_DATA_DIR to a folder of your own"
    if IS_ROOT:
        assert told == (
            f"evenload: EVENLOAD_DATA_DIR: {tmp_path}/data cannot be written ({tmp_path}/data belongs to {OWNER}): "
            "name a folder of your own"
        )


def test_a_data_folder_below_a_closed_folder_is_told(evenload, foreign, tmp_path):
    (tmp_path / "closed").mkdir()
    foreign(tmp_path / "closed")
    data = str(tmp_path / "closed/data")

    said, _ = found(evenload("doctor", "--json", EVENLOAD_DATA_DIR=data), "data folder")
    told = refused(evenload("up", EVENLOAD_DATA_DIR=data))
    dead = evenload("dead", EVENLOAD_DATA_DIR=data)

    assert said.startswith(f"{tmp_path}/closed cannot be written (it belongs to {OWNER}")
    fault = f"EVENLOAD_DATA_DIR: {data} cannot be written (Permission denied): name a folder of your own"
    assert told == f"evenload: {fault}"
    assert (dead.returncode, len(dead.stderr.splitlines())) == (1, 1), dead.stderr


@pytest.mark.parametrize("name", ["lock", "rabbitmq/rabbitmq.conf", "rabbitmq/passwords.json"])
def test_a_file_of_somebody_else_in_a_data_folder_is_told_with_its_owner(evenload, foreign, tmp_path, name):
    for part in NODE:
        file = copy_dir(tmp_path / "cache", "rabbitmq") / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    file = tmp_path / "data" / name
    file.parent.mkdir(parents=True)
    file.write_text("")
    foreign(file, 0o600)
    cache = {"EVENLOAD_CACHE_DIR": str(tmp_path / "cache"), "EVENLOAD_PROMETHEUS": "0"}

    said, cure = found(evenload("doctor", "--json", **cache), "data folder")
    done = evenload("up", **cache)

    assert said.startswith(f"{file} cannot be written (it belongs to {OWNER}")
    assert cure == "give it to this user, or set EVENLOAD_DATA_DIR to a folder of your own"
    *_, told = done.stderr.splitlines()
    assert done.returncode == 2
    assert told.startswith(
        f"evenload: EVENLOAD_DATA_DIR: {file} cannot be used (Permission denied; it belongs to {OWNER}"
    )
    assert told.endswith("): give it to this user, or name a folder of your own")
