"""A process told to crash somewhere does so there, at the pass that was named, and nowhere else."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from services import crash_points

ROOT = Path(__file__).resolve().parents[2]
WALK = (
    "from services.crash_points import crash_point as at\nfor place in ('gateway.committed', 'gateway.replied') * 3:\n"
)
WALK += "    print(place, flush=True); at(place)\n"
PLACES = ["gateway.committed", "gateway.replied"] * 3


def walk(told):
    environment = {name: value for name, value in os.environ.items() if name != crash_points.VARIABLE}
    if told is not None:
        environment[crash_points.VARIABLE] = told
    ended = subprocess.run(
        [sys.executable, "-c", WALK], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return ended.returncode, ended.stdout.split()


@pytest.mark.parametrize(
    ("told", "code", "passed"),
    [
        (None, 0, 6),
        ("", 0, 6),
        ("gateway.committed", -signal.SIGKILL, 1),
        ("gateway.replied", -signal.SIGKILL, 2),
        ("gateway.replied:1", -signal.SIGKILL, 2),
        ("gateway.committed:3", -signal.SIGKILL, 5),
        ("gateway.committed:4", 0, 6),
        ("sweep.read", 0, 6),
    ],
)
def test_a_process_crashes_where_it_was_told_to_and_nowhere_else(told, code, passed):
    assert walk(told) == (code, PLACES[:passed])


@pytest.mark.parametrize(
    "wrong", ["gateway", "gateway.comitted", "gateway.committed:", "gateway.committed:0", ":3", "x:²"]
)
def test_what_is_no_crash_point_is_refused_with_the_known_ones(wrong):
    with pytest.raises(ValueError, match=r"balancer\.assigned.*sweep\.read"):
        crash_points.parse(wrong)


def test_every_place_in_the_code_has_a_known_name_and_none_has_two():
    found = [
        call.args[0].value
        for package in ("services", "gateway", "balancer", "substations")
        for file in (ROOT / package).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "crash_point"
    ]

    assert {"gateway.committed", "balancer.assigned"} <= set(found) <= set(crash_points.NAMES)
    assert len(found) == len(set(found))
