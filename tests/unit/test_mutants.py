"""Every mutant fits the code as it is, and the tool tells apart what is caught, what survives and what says nothing."""

import asyncio
import collections
import subprocess
from dataclasses import replace

import pytest
from harness import mutants
from harness.mutant_copy import Copy, Run
from harness.mutants import ROOT, Mutant, Outcome, Result, all_mutants, conclude, judge, main, try_all, try_out

MUTANTS = all_mutants()


def test_every_mutant_breaks_one_line_that_is_there_and_leaves_the_file_readable():
    faults = []
    for one in MUTANTS:
        source = (ROOT / one.file).read_text()
        if source.count(one.find) != 1 or one.replace == one.find:
            faults.append(f"{one.name}: {one.file} holds it {source.count(one.find)} times")
        elif one.file.endswith(".py"):
            compile(source.replace(one.find, one.replace), f"{one.file}, broken by {one.name}", "exec")

    assert faults == []


def test_every_mutant_has_a_name_of_its_own_and_says_what_it_breaks():
    assert [name for name, count in collections.Counter(one.name for one in MUTANTS).items() if count > 1] == []
    for one in MUTANTS:
        assert one.name == one.name.lower().replace(" ", "-"), one.name
        assert one.breaks.endswith("."), one.name
        assert not one.guarded_by or one.guarded_by.endswith("."), one.name


def test_every_test_that_a_mutant_names_is_there():
    named = {test for one in MUTANTS for test in one.tests}
    assert all(one.tests for one in MUTANTS)

    for test in named:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_dir() or f"def {name}" in (ROOT / file).read_text(), test


ANSWERS = "def answer():\n    return 42\n\n\ndef echo(word):\n    return word\n\n\ndef idle():\n    return 1\n"
TESTS = """
import subprocess, sys
from services.answers import answer, echo

def test_the_answer():
    assert answer() == 42

def test_the_echo_in_a_process_of_its_own():
    command = "from services.answers import echo; print(echo('a'))"
    said = subprocess.run([sys.executable, "-P", "-c", command], cwd="/", check=True, capture_output=True, text=True)
    assert said.stdout == "a\\n"

def test_that_is_red():
    assert False
"""
HERE, CHILD, RED = (
    f"tests/test_answers.py::test_{one}" for one in ("the_answer", "the_echo_in_a_process_of_its_own", "that_is_red")
)
ANSWER, ECHO, IDLE = "    return 42\n", "    return word\n", "    return 1\n"


def mutant(name, find, becomes, *tests, **more):
    return Mutant("tiny", name, "Something.", "services/answers.py", find, becomes, list(tests), **more)


@pytest.fixture
def tree(tmp_path):
    """A tree that has a package with the name of an installed one."""
    root = tmp_path / "tiny"
    for file, text in {
        "services/__init__.py": "",
        "services/answers.py": ANSWERS,
        "tests/test_answers.py": TESTS,
        "pyproject.toml": "[tool.pytest.ini_options]\naddopts = '-p no:locust -p no:hypothesispytest -p no:asyncio'\n",
        ".gitignore": "left_out\n",
        "left_out": "",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def test_what_is_caught_what_survives_and_what_says_nothing_are_told_apart(tree, tmp_path):
    given = [
        mutant("caught", ANSWER, "    return 43\n", HERE),
        mutant("caught-in-a-child", ECHO, "    return word * 2\n", CHILD),
        mutant("survives", IDLE, "    return 2\n", HERE),
        mutant("does-not-fit", "    return\n", "    return 2\n", HERE),
        mutant("cannot-be-imported", "def answer", "def reply", HERE),
    ]

    outcomes = {one.mutant.name: one for one in asyncio.run(try_all(tree, given, 2, tmp_path / "home"))}

    assert {name: one.result for name, one in outcomes.items()} == {
        "caught": Result.CAUGHT,
        "caught-in-a-child": Result.CAUGHT,
        "survives": Result.SURVIVED,
        "does-not-fit": Result.UNSOUND,
        "cannot-be-imported": Result.UNSOUND,
    }
    assert outcomes["caught"].told == "test_answers.py::test_the_answer"
    assert "0 times" in outcomes["does-not-fit"].told
    assert "pytest ended with" in outcomes["cannot-be-imported"].told
    assert (tree / "services/answers.py").read_text() == ANSWERS
    assert (tmp_path / "home/0/tree/services/answers.py").read_text() == ANSWERS
    assert not (tmp_path / "home/0/tree/left_out").exists()


def test_a_test_that_hangs_is_interrupted_and_told_as_such(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "DEADLINE_S", 1.0)
    hangs = mutant("hangs", ANSWER, "    while True:\n        pass\n", HERE)

    assert asyncio.run(try_out(Copy(tree, tmp_path / "home"), hangs)).result is Result.TIMED_OUT


def test_tests_that_fail_with_nothing_broken_catch_nobody(tree, capsys):
    (tree / "tests/mutants").mkdir()
    (tree / "tests/mutants/tiny.toml").write_text(
        f"""[[mutant]]\nname = "any"\nbreaks = "Something."\nfile = "services/answers.py"
find = "42"\nreplace = "43"\ntests = ["{RED}"]\n"""
    )

    assert main([], tree) == 1
    assert "with nothing broken the tests do not pass" in capsys.readouterr().err
    assert main(["--list"], tree) == 0
    assert capsys.readouterr().out == "tiny/any: Something.\n"
    with pytest.raises(SystemExit) as refused:
        main(["another"], tree)
    assert refused.value.code == 2


@pytest.mark.parametrize(
    ("run", "result", "told"),
    [
        (Run(0, "1 passed", 1.0), Result.SURVIVED, ""),
        (Run(1, "FAILED tests/unit/test_a.py::test_b[c d] - assert\n1 failed", 1.0), Result.CAUGHT, "test_b[c d]"),
        (Run(1, "ERROR tests/unit/test_a.py::test_b\n1 error", 1.0), Result.CAUGHT, "test_b"),
        (Run(1, "it says nothing of a test", 1.0), Result.UNSOUND, "ended with 1"),
        (Run(2, "ERROR tests/unit/test_a.py - ImportError", 1.0), Result.UNSOUND, "ended with 2"),
        (Run(4, "file or directory not found", 1.0), Result.UNSOUND, "ended with 4"),
        (Run(5, "no tests ran", 1.0), Result.UNSOUND, "ended with 5"),
        (Run(-9, "", 1.0), Result.UNSOUND, "ended with -9"),
        (Run(None, "", 120.0), Result.TIMED_OUT, "after 120 s"),
    ],
)
def test_only_a_test_that_failed_has_caught_a_mutant(run, result, told):
    found, why = judge(run, mutant("any", "a", "b", HERE))

    assert found is result
    assert told in why


def concluded(capsys, *results):
    code = conclude([Outcome(mutant(f"m{number}", "a", "b", HERE), one, 1.0, "") for number, one in enumerate(results)])
    return code, capsys.readouterr().out


def test_it_fails_where_one_survives_or_says_nothing_and_nowhere_else(capsys):
    caught, timed_out, held, survived, unsound = Result
    code, said = concluded(capsys, caught, timed_out, held)
    assert code == 0
    assert said.endswith("3 mutants: 2 caught, 1 of them timed out, 1 held by a second guard, 0 survived\n")
    code, said = concluded(capsys, caught, survived)
    assert code == 1
    assert "SURVIVED: m1: Something. Unnoticed by: tests/test_answers.py::test_the_answer" in said
    assert said.endswith("2 mutants: 1 caught, 0 held by a second guard, 1 survived\n")
    code, said = concluded(capsys, caught, unsound)
    assert code == 1
    assert said.endswith("2 mutants: 1 caught, 0 held by a second guard, 0 survived, 1 unsound\n")


def test_a_second_guard_that_is_not_needed_any_more_is_told(capsys):
    guarded = replace(mutant("old", "a", "b", HERE), guarded_by="Another line.")

    assert conclude([Outcome(guarded, Result.CAUGHT, 1.0, "")]) == 0
    assert "caught after all, so that `guarded_by` may go: old" in capsys.readouterr().out
