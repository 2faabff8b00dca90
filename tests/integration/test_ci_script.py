"""The CI script with a `make` that only says what it was asked for: what runs, what is told, and the exit code."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from harness.stack import ROOT, until

STEPS = ["setup", "check", "model", "test", "compose", "chaos"]
DURATIONS = "".join(f"{12 - number}.00s call     tests/e2e/test_{number}.py::test_it\n" for number in range(12))


@pytest.fixture
def ci(tmp_path):
    """Runs a copy of the script; `make` and the compose check do what these shell lines say."""
    (tmp_path / "checkout" / ".ci").mkdir(parents=True)
    (tmp_path / "checkout" / ".venv" / "bin").mkdir(parents=True)
    script = shutil.copy(ROOT / ".ci/run", tmp_path / "checkout" / ".ci" / "run")
    (tmp_path / "tools").mkdir()

    def start(make: str = "true", compose: str = "true", **environment: str) -> subprocess.Popen[str]:
        program(tmp_path / "tools" / "make", f'echo "asked for $*"\n{make}')
        program(tmp_path / "checkout" / ".venv/bin/python", f'echo "asked for $*"\n{compose}')
        return subprocess.Popen(
            ["env", "--default-signal=INT", "bash", script],
            env={**os.environ, "PATH": f"{tmp_path}/tools:{os.environ['PATH']}", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(*arguments: str, **named: str) -> tuple[int, list[str]]:
        with start(*arguments, **named) as process:
            said, _ = process.communicate(timeout=60)
        return process.returncode, said.splitlines()

    run.start = start
    return run


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def asked(said: list[str]) -> list[str]:
    return [line.removeprefix("asked for ") for line in said if line.startswith("asked for ")]


def test_every_step_runs_and_the_last_lines_tell_how_long_each_took(ci):
    code, said = ci()

    assert code == 0
    assert asked(said) == [
        *(".venv/.dev", "check", "model walks", "test", "-m harness.compose_check", "test-chaos"),
    ]
    assert [line.split()[0] for line in said[-len(STEPS) - 1 :]] == [*STEPS, "all"]
    assert all(re.fullmatch(r"\w+ +\d+", line) for line in said[-len(STEPS) - 1 :])


def test_tests_over_their_budget_are_a_loud_warning_with_the_ten_slowest_and_no_failure(ci):
    code, said = ci(f'if [ "$1" = test ]; then printf "{DURATIONS}"; fi', TEST_BUDGET_S="-1")

    assert code == 0
    warning = next(number for number, line in enumerate(said) if line.startswith("WARNING: make test took"))
    assert said[warning].endswith("its budget is -1 s. The ten slowest:")
    assert said[warning + 1 :] == DURATIONS.splitlines()[:10]


@pytest.mark.parametrize("target", ["check", "model", "test", "test-chaos"])
def test_a_step_that_fails_fails_the_run_and_is_named_last(ci, target):
    code, said = ci(f'if [ "$1" = {target} ]; then exit 2; fi')

    assert code == 1
    assert said[-1] == f"failed: {target.removeprefix('test-')}"
    assert ("test" in asked(said)) == target.startswith("test")


@pytest.mark.parametrize(("compose", "as_root", "as_user"), [("exit 1", 1, 1), ("exit 3", 1, 0)])
def test_a_compose_check_that_fails_fails_the_run_and_one_without_an_engine_only_where_it_could_start_one(
    ci, compose, as_root, as_user
):
    may_mount = (
        os.geteuid() == 0 and int(re.search(r"CapEff:\s*(\S+)", Path("/proc/self/status").read_text())[1], 16) >> 21 & 1
    )

    code, said = ci(compose=compose)

    assert code == (as_root if may_mount else as_user), said


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_end_lets_its_steps_clean_up_and_shows_where_they_were(ci, tmp_path, signum, code):
    cleaned_up = tmp_path / "cleaned up"
    make = f"""
        if [ "$1" = test ]; then
          trap 'sleep 1; touch "{cleaned_up}"; exit 0' TERM
          echo "in the midst of it"; touch "{tmp_path}/begun"
          while true; do sleep 0.1; done
        fi
    """
    with ci.start(make) as process:
        until((tmp_path / "begun").exists, "a step that takes long")

        process.send_signal(signum)
        said, _ = process.communicate(timeout=60)

    assert process.returncode == code
    assert cleaned_up.exists()
    assert "==== test: did not end; its last lines ====" in said
    assert "in the midst of it" in said


def test_a_step_that_is_killed_fails_the_run_and_shows_where_it_was(ci):
    code, said = ci('if [ "$1" = check ]; then echo "so far"; kill -KILL $PPID; fi')

    assert code == 1
    assert "failed: check was killed" in said
    assert "so far" in said
