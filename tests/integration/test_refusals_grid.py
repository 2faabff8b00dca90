"""A grid file that cannot be used ends a program with exit code 2 and one line that names the file and the fault."""

import re

import pytest
from harness.refusal import ENDS_WITHIN_S

pytestmark = pytest.mark.timeout(ENDS_WITHIN_S, func_only=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("limit_kw = 381", "line 6, substation.0.limit_kw: is above rated_kva × 0.95 = 380 kW"),
        ("limit_kw = -1", "line 6, substation.0.limit_kw: input should be greater than or equal to 0.001 (got -1)"),
        (
            "colour = 'red'",
            "line 6, substation.0.colour: is no key of a grid file; there are id, rated_kva, limit_kw, ",
        ),
        (
            "[[substation]]\nid = 'north'\nrated_kva = 9\nconnectors = 1",
            "line 7, substation.1.id: 'north' is the id of",
        ),
        ("colour", "is no TOML: Expected '=' after a key in a key/value pair (at line 6, column 7)"),
    ],
)
@pytest.mark.parametrize("who", ["substations", "up"])
def test_a_faulty_grid_file(refusal, tmp_path, who, text, told):
    grid = tmp_path / "grid.toml"
    grid.write_text(f"name = 'mine'\n[[substation]]\nid = 'north'\nrated_kva = 400\nconnectors = 40\n{text}\n")

    said = refusal(who, EVENLOAD_GRID=str(grid))

    assert f"EVENLOAD_GRID: grid file '{grid}'" in said
    assert told in said


@pytest.mark.parametrize("who", ["substations", "up"])
def test_a_grid_file_that_is_not_there(refusal, who):
    said = refusal(who, EVENLOAD_GRID="nowhere.toml")

    assert "EVENLOAD_GRID: grid file 'nowhere.toml' cannot be read" in said
    assert said.endswith("default, mixed")


def test_a_floor_under_which_no_session_could_run(refusal):
    said = refusal("substations", EVENLOAD_SUBSTATION_FLOOR_KW="500")

    assert re.search(
        "EVENLOAD_SUBSTATION_FLOOR_KW: 500 kW is above the limit of '(north|east|south|west)', 304 kW", said
    )
    assert "lower it" in said
