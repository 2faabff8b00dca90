import pytest

from services.errors import Misconfigured
from services.grid import ALL, extra, load_grid

ONE = """
name = "mine"
[[substation]]
id = "north"
rated_kva = 400
connectors = 40
"""


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "grid.toml"

    def write(text):
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(path):
    with pytest.raises(Misconfigured) as caught:
        load_grid(path)
    return str(caught.value)


def test_the_default_area_has_four_equal_substations_of_304_kw_and_40_connectors():
    substations = load_grid("default").pick([ALL])

    assert [one.id for one in substations] == ["north", "east", "south", "west"]
    assert {(one.rated_kva, one.limit_w, one.connectors, one.zone) for one in substations} == {(400, 304_000, 40, None)}


def test_a_limit_of_its_own_replaces_the_hosting_share(written):
    (spec,) = load_grid(written(ONE + "limit_kw = 120.5\nzone = 'west'\n")).pick([ALL])

    assert (spec.rated_w, spec.limit_w, spec.zone) == (380_000, 120_500, "west")


def test_a_limit_may_reach_the_rating_but_not_pass_it(written):
    assert load_grid(written(ONE + "limit_kw = 380\n")).pick([ALL])[0].limit_w == 380_000
    assert "= 380 kW" in refusal(written(ONE + "limit_kw = 380.1\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ONE + "colour = 'red'\n", "line 7, substation.0.colour: is no key of a grid file; there are id, rated_kva, "),
        (ONE + "'co\tlour\u2028' = 1\n", r"line 7, substation.0.'co\tlour\u2028': is no key of a grid file"),
        ("area = 1\n" + ONE, "line 1, area: is no key of a grid file; there are name, substation"),
        (ONE.replace("400", "-400"), "line 5, substation.0.rated_kva: input should be greater than or equal to 1 "),
        (ONE.replace("400", "0"), "line 5, substation.0.rated_kva: "),
        (ONE.replace("400", "nan"), "line 5, substation.0.rated_kva: "),
        (ONE.replace("400", "inf"), "line 5, substation.0.rated_kva: "),
        (ONE.replace("400", "'400'"), "line 5, substation.0.rated_kva: "),
        (ONE.replace("40\n", "0\n"), "line 6, substation.0.connectors: "),
        (ONE.replace("connectors = 40", "connectors = 4.5"), "line 6, substation.0.connectors: "),
        (ONE.replace("connectors = 40", "connectors = true"), "line 6, substation.0.connectors: "),
        (ONE.replace("connectors = 40", ""), "line 3, substation.0.connectors: is missing"),
        (ONE + "limit_kw = -1\n", "line 7, substation.0.limit_kw: "),
        (ONE + "limit_kw = 381\n", "line 7, substation.0.limit_kw: is above rated_kva × 0.95 = 380 kW (got 381"),
        (ONE + "bays = -1\n", "line 7, substation.0.bays: "),
        (ONE + "bays = 10001\n", "line 7, substation.0.bays: "),
        (ONE + "zone = ''\n", "line 7, substation.0.zone: "),
        (ONE.replace('"north"', '"no rth"'), "line 4, substation.0.id: "),
        (ONE.replace('"north"', '"charge.north"'), "line 4, substation.0.id: "),
        (ONE.replace('"north"', '"north\\n"'), "line 4, substation.0.id: "),
        (ONE.replace('"north"', '""'), "line 4, substation.0.id: "),
        (ONE + ONE.replace('name = "mine"', ""), "line 10, substation.1.id: 'north' is the id of substation.0 already"),
        ('name = "empty"\n', "grid.toml': substation: is missing"),
        ('name = "empty"\nsubstation = []\n', "line 2, substation: "),
        ('name = "empty"\nsubstation = 1\n', "line 2, substation: "),
        (ONE.replace('name = "mine"', ""), "grid.toml': name: is missing"),
        (ONE.replace('"mine"', "1"), "line 2, name: "),
        ("name = ", "is no TOML"),
        (ONE + "connectors = 41\n", "is no TOML"),
        ("deep = " + "[" * 100_000, "is no TOML"),
        ("long = " + "1" * 10_000, "is no TOML"),
    ],
)
def test_a_faulty_grid_file_is_refused_with_line_key_and_cause(written, text, told):
    path = written(text)

    said = refusal(path)

    assert told in said
    assert path in said
    assert len(said.splitlines()) == 1


def test_every_fault_of_a_file_is_told_in_one_line(written):
    said = refusal(written(ONE + "colour = 'red'\n" + ONE.replace('name = "mine"', "").replace("400", "-4")))

    assert "line 7, substation.0.colour" in said
    assert "line 12, substation.1.rated_kva" in said
    assert len(said.splitlines()) == 1


def test_bays_are_one_for_four_connectors_unless_the_file_says_how_many(written):
    bays = [load_grid(written(ONE + text)).pick([ALL])[0].waiting_bays for text in ("", "bays = 0\n", "bays = 7\n")]

    assert bays == [10, 0, 7]


def test_a_file_that_is_not_there_or_is_no_text_is_refused(tmp_path):
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"name = '\xe9'")

    said = refusal("nowhere.toml")
    assert "'nowhere.toml' cannot be read (No such file" in said
    assert said.endswith("default, mixed")
    assert refusal(str(binary)).endswith("binary.toml' is not UTF-8: save it as UTF-8")
    assert "cannot be read" in refusal(str(tmp_path))


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_file_of_windows_editors_is_read_and_its_faults_have_their_lines(tmp_path, line_end):
    path = tmp_path / "grid.toml"
    path.write_bytes(ONE.strip().replace("\n", line_end).encode("utf-8-sig"))
    assert load_grid(str(path)).name == "mine"

    path.write_bytes((ONE.strip() + "\ncolour = 1").replace("\n", line_end).encode("utf-8-sig"))
    assert "line 6, substation.0.colour: is no key" in refusal(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_utf_16_is_told_as_such(tmp_path, encoding):
    path = tmp_path / "grid.toml"
    path.write_bytes(ONE.encode(encoding))

    said = f"EVENLOAD_GRID: grid file '{path}' is UTF-16, as programs on Windows may write it: save it as UTF-8"
    assert refusal(str(path)) == said


def test_the_substations_that_are_named_are_picked_in_that_order():
    assert [one.id for one in load_grid("default").pick(["west", "north"])] == ["west", "north"]


def test_picking_a_stranger_names_it_and_who_there_is():
    with pytest.raises(
        Misconfigured, match=r"'nort' is not in grid area 'default', which has north, east, south, west"
    ):
        load_grid("default").pick(["north", "nort"])


def test_the_mixed_area_has_three_sizes_in_three_zones():
    substations = load_grid("mixed").pick([ALL])

    assert [one.rated_kva for one in substations] == [250, 400, 400, 630]
    assert [one.limit_w for one in substations] == [190_000, 304_000, 304_000, 478_800]
    assert len({one.zone for one in substations}) == 3


def test_an_extra_substation_is_like_those_of_the_default_grid():
    assert [extra(one.id) for one in load_grid("default").substation] == load_grid("default").substation


def test_a_process_without_an_id_may_take_the_grids_own_and_extras_by_number():
    grid = load_grid("default")

    candidates = grid.candidates(["west", "extra-10", "elsewhere", "extra-9", "extra-01", "extra-0", "extra-x"])

    assert candidates == ["north", "east", "south", "west", "extra-9", "extra-10"]


def test_an_id_of_the_grid_file_is_that_files_own_even_if_it_reads_like_an_extra_one(written):
    grid = load_grid(written(ONE + '[[substation]]\nid = "extra-1"\nrated_kva = 100\nconnectors = 3\n'))

    assert grid.candidates(["extra-1"]) == ["north", "extra-1"]
    assert (grid.spec("extra-1").connectors, grid.spec("extra-2").connectors) == (3, 40)
