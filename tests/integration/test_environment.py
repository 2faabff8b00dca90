"""The environment that `make` makes: in any folder, under any locale, beside what is set for other Pythons."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
PACKAGES = ("services", "gateway", "balancer", "substations")
PLAIN = {"PATH": f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin", "HOME": "/nonexistent"}
STRANGE = "-José 'a\" $b #c %d;e[f]"
LOCALES = {
    "none": {},
    "C": {"LC_ALL": "C"},
    "C, and no help from Python": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "one that is not installed": {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"},
}


def run(clone, *command, **variables):
    return subprocess.run(
        command, cwd=clone, env=PLAIN | variables, capture_output=True, text=True, timeout=400, check=False
    )


def make(clone, *arguments, **variables):
    return run(clone, MAKE, *arguments, **variables)


def program(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def wheel(folder, name):
    """A package of nothing, and the line of a lock that asks for it."""
    folder.mkdir()
    path = folder / f"{name}-1-py3-none-any.whl"
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return f"{name}==1 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A checkout in a folder of a strange name whose lock holds one package of nothing, made under the locale C."""
    folder = tmp_path_factory.mktemp("clones") / STRANGE
    for name in (*PACKAGES, "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    (folder / "requirements").mkdir()
    (folder / "requirements/runtime.txt").write_text(wheel(folder.parent / "wheels", "nothing"))
    hostile = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONHOME": "/nowhere",
        "PIP_NO_INDEX": "1",  # of this, and of [install] find-links, pip must hear
        "PIP_USER": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_CONSTRAINT": "/nowhere/constraints.txt",
        "PIP_PLATFORM": "win32",
        "PIP_ABI": "cp27m",
        "PIP_PYTHON_VERSION": "2.7",
        "PIP_LOG": str(folder.parent / "elsewhere/log"),
        "PIP_CONFIG_FILE": str(folder.parent / "pip.conf"),
        "SSLKEYLOGFILE": "/nowhere/keys",
    }
    elsewhere = folder.parent / "elsewhere"
    (folder.parent / "pip.conf").write_text(
        f"[global]\nuser = true\ntarget = {elsewhere}\nprefix = {elsewhere}\nroot = {elsewhere}\nquiet = 3\n"
        f"python = /nowhere/python\nfind-links = /nowhere\nlog = {elsewhere}/log\nno-binary = :all:\n"
        f"[install]\nconstraint = /nowhere/constraints.txt\nplatform = win32\nfind-links = {folder.parent / 'wheels'}\n"
    )
    done = make(folder, ".venv/.runtime", **hostile)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == ["making the environment in .venv", "installing requirements/runtime.txt"]
    assert not elsewhere.exists()
    # The dependencies are those of the tests' own environment.
    [site] = (folder / ".venv/lib").glob("python3*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.parametrize("locale", LOCALES.values(), ids=LOCALES)
def test_a_clone_in_a_folder_of_any_name_runs_under_any_locale(clone, locale):
    found = run(clone, ".venv/bin/python", "-c", "import gateway, nothing; print(ascii(gateway.__file__))", **locale)
    told = run("/", clone / ".venv/bin/evenload", "limit", "north", **locale)

    assert found.stdout.endswith("/gateway/__init__.py'\n"), found.stderr
    assert (told.returncode, "give the limit in KW, or --lift" in told.stderr) == (2, True), told.stderr


def test_what_others_set_for_their_pythons_does_not_reach_the_command(clone, tmp_path):
    (tmp_path / "services").mkdir()
    (tmp_path / "services/__init__.py").write_text("raise SystemExit('not ours')")
    foreign = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2"}
    link = tmp_path / "evenload"
    link.symlink_to(clone / ".venv/bin/evenload")

    told = run(tmp_path, link, "--help", **foreign)

    assert "Check the setup, the ledger and a running stack" in told.stdout, told.stderr


def test_an_environment_that_is_sound_is_left_alone_and_one_that_was_moved_is_made_anew(clone):
    assert make(clone, "--question", ".venv/.runtime").returncode == 0

    moved = clone.rename(clone.with_name("moved"))
    try:
        assert make(moved, "--question", ".venv/.runtime").returncode == 1
        # What does not name its interpreter by a path goes on in the meantime.
        assert "Usage: evenload" in run("/", moved / ".venv/bin/evenload", "--help").stdout
    finally:
        moved.rename(clone)


def test_an_environment_whose_python_is_gone_is_made_anew(clone):
    python = clone / ".venv/bin/python"
    kept = python.readlink()
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    try:
        assert make(clone, "--question", ".venv/.runtime").returncode == 1
    finally:
        python.unlink()
        python.symlink_to(kept)


def test_a_package_index_that_does_not_answer_is_told_with_what_set_pip_up(clone):
    before = (clone / ".venv/.runtime").stat().st_mtime_ns
    nowhere = "http://user:do-not-print-me@127.0.0.1:9/none"
    broken = {"PIP_EXTRA_INDEX_URL": nowhere, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    (clone / "requirements/other.txt").write_text("another==1 --hash=sha256:" + "0" * 64 + "\n")

    done = run(clone, "tools/environment", "make", ".venv", "requirements/other.txt", **broken)

    *_, told = done.stderr.splitlines()
    assert done.returncode == 2
    assert told.startswith("installing requirements/other.txt failed (see above; pip is set up by: :env:.extra-index")
    assert told.endswith(", :env:.no-index): the Python package index must be reachable, or pip's cache filled")
    assert "do-not-print-me" not in done.stdout + done.stderr
    assert (clone / ".venv/.runtime").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_what_make_starts_asks_this_machine_directly_and_keeps_what_else_needs_no_proxy(name):
    shown = make(ROOT, "--eval", "shown: ; @echo $$no_proxy $$NO_PROXY", "shown", **{name: "example.org"})

    assert shown.stdout == "localhost,127.0.0.1,example.org localhost,127.0.0.1,example.org\n"


@pytest.fixture
def programs(tmp_path):
    """A folder of Pythons that stands first on the PATH."""
    folder = tmp_path / "pro grams"
    program(folder / "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    program(folder / "python3.12", "echo 'lacks venv'")
    program(folder / "python3.13", "echo 'is older than Python 3.11'")
    return folder


REAL_BUT_FOR_VENV = f'case "$*" in "-m venv"*) exit 1;; esac; exec {sys.executable} "$@"'


@pytest.fixture
def path(programs, tmp_path):
    """A PATH with these Pythons and no others."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "cat", "dirname", "readlink", "rm"):
        (tools / name).symlink_to(shutil.which(name))
    return f"{programs}:{tools}"


def test_the_first_python_that_runs_and_is_new_enough_and_whole_is_taken(programs, path, tmp_path):
    program(programs / "python3", REAL_BUT_FOR_VENV)

    done = run(ROOT, "tools/environment", "make", str(tmp_path / "venv"), "no.txt", PATH=path)

    assert done.returncode == 2
    assert done.stderr.startswith(f"{programs}/python3 makes no environment in {tmp_path}/venv")


def test_a_python_without_a_part_of_its_library_is_told_with_what_it_lacks_and_the_next_is_asked(
    programs, path, tmp_path
):
    without = "import sys; sys.modules.update(dict.fromkeys({}))\nexec(sys.argv[1])"
    for name, lacking in {"python3.11": ["ssl"], "python3.12": ["sqlite3", "ctypes"], "python3.13": ["zlib"]}.items():
        program(programs / name, f"exec {sys.executable} -c '{without.format(json.dumps(lacking))}' \"$2\"")
    venv = tmp_path / "venv"

    none = run(ROOT, "tools/environment", "make", str(venv), "no.txt", PATH=path)
    program(programs / "python3", REAL_BUT_FOR_VENV)
    done = run(ROOT, "tools/environment", "make", str(venv), "no.txt", PATH=path)

    assert none.stderr.startswith(
        f"no Python will do: {programs}/python3.11 lacks ssl, {programs}/python3.12 lacks sqlite3 and ctypes, "
        f"{programs}/python3.13 lacks zlib: install a whole Python 3.11 or later "
    )
    assert done.stderr.startswith(f"{programs}/python3 makes no environment in {venv}")


def test_an_environment_that_is_active_is_not_what_its_successor_is_made_with(programs, path, tmp_path):
    venv = tmp_path / "venv"
    for name in ("python3.11", "python3"):
        program(programs / name, REAL_BUT_FOR_VENV)
    venv.mkdir()
    (venv / "bin").mkdir()
    (venv / "bin/python3.11").symlink_to(programs / "python3.11")
    active = f"{tmp_path}/./venv/bin"

    done = run(ROOT, "tools/environment", "make", str(venv), "no.txt", PATH=f"{active}:{path}")
    assert done.stderr.startswith(f"{programs}/python3.11 makes no environment in {venv}")

    (venv / "bin").mkdir(parents=True)
    program(venv / "bin/python3.11", REAL_BUT_FOR_VENV)
    named = run(ROOT, "tools/environment", "make", str(venv), "no.txt", PATH=path, PYTHON=f"{venv}/bin/python3.11")
    assert named.stderr.startswith(f"no Python will do: {venv}/bin/python3.11 lies in {venv} itself: ")
    assert (venv / "bin/python3.11").exists()


def test_every_environment_of_the_makefile_is_filled_in_the_same_way(tmp_path):
    printed = "".join(
        make(ROOT, "--dry-run", "--always-make", f".venv/.{one}").stdout for one in ("audit", "suite-forky")
    )

    assert "tools/install_lock.py .venv/audit requirements/audit.txt" in printed
    assert "tools/install_lock.py .venv/forky requirements/dev.txt" in printed
    assert not re.search(r"pip.* install", printed)


@pytest.mark.parametrize("target", ["rush", "locust"])
@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({}, "--host http://127.0.0.1:8080 "),
        ({"EVENLOAD_GATEWAY_PORT": "8099"}, "--host http://127.0.0.1:8099 "),
        ({"EVENLOAD_GATEWAY_PORT": "tcp://10.0.0.1:8080"}, "--host http://127.0.0.1:8080 "),
        ({"EVENLOAD_GATEWAY_PORT": "1", "EVENLOAD_GATEWAY_PORT_FILE": "{file}"}, "--host http://127.0.0.1:8123 "),
        ({"EVENLOAD_GATEWAY_PORT": "none"}, "evenload: EVENLOAD_GATEWAY_PORT: "),
    ],
    ids=["default", "variable", "Kubernetes", "file", "no port"],
)
def test_the_load_is_sent_to_the_gateway_that_the_commands_ask(tmp_path, target, variables, told):
    (tmp_path / "port").write_text("8123\n")
    given = {name: value.format(file=tmp_path / "port") for name, value in variables.items()}
    program(tmp_path / "python", f'case "$2" in locust) echo "$@" ;; *) exec {sys.executable} "$@" ;; esac')

    done = make(ROOT, "--assume-old=.venv/.dev", target, f"BIN={tmp_path}", "ARGS=--more", **given)

    assert told in done.stdout + done.stderr
    assert (done.returncode, "locust" in done.stdout) == ((2, False) if "none" in variables.values() else (0, True))


def test_where_no_python_will_do_each_is_told_with_what_it_lacks_before_anything_is_made(programs, path, tmp_path):
    done = run(ROOT, "tools/environment", "make", str(tmp_path / "venv"), "no.txt", PATH=path)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"no Python will do: {programs}/python3.11 does not run (exit code 127), {programs}/python3.12 lacks venv, "
        f"{programs}/python3.13 is older than Python 3.11: install a whole Python 3.11 or later "
        "(Debian: apt install python3-venv), or name one: make PYTHON=/path/to/python3.11\n"
    )
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ("{programs}/python3.12", "no Python will do: {programs}/python3.12 lacks venv: install"),
        ("python3.13", "no Python will do: {programs}/python3.13 is older than Python 3.11: install"),
        ("/nowhere/python3", "no Python will do: /nowhere/python3 is nowhere on the PATH: install"),
    ],
)
def test_a_python_that_was_named_and_will_not_do_is_told_and_no_other_is_taken(programs, tmp_path, wish, told):
    wish = wish.format(programs=programs)

    done = make(ROOT, "environment", f"PYTHON={wish}", f"VENV={tmp_path}/venv", PATH=f"{programs}:{PLAIN['PATH']}")

    assert done.stderr.startswith(told.format(programs=programs)), done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_folder_in_which_python_makes_no_environment_is_told(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()

    done = run(folder, ROOT / "tools/environment", "make", ".venv", "no.txt")

    assert (done.returncode, done.stderr) == (
        2,
        f"{folder} holds a colon, and Python makes no environment there: rename that folder\n",
    )
    assert list(folder.iterdir()) == []
