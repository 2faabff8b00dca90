import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.toml_lines import line_of

GRID = '''\
# name = "not here"
name = "mine" # [[substation]]

[[substation]]
id = """
[[substation]]
id = "not here"
"""
"rated_kva" = 400
    connectors   =   40

[[substation]]
zone.name = 'west'
limits = [
  1, # the first
  2,
]
'id' = "south"
[[substation.meter]]
id = 1
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("substation",), 4),
        (("substation", 0), 4),
        (("substation", 0, "id"), 5),
        (("substation", 0, "rated_kva"), 9),
        (("substation", 0, "connectors"), 10),
        (("substation", 1), 12),
        (("substation", 1, "zone", "name"), 13),
        (("substation", 1, "limits"), 14),
        (("substation", 1, "limits", 1), None),
        (("substation", 1, "id"), 18),
        (("substation", 1, "meter", 0), 19),
        (("substation", 1, "meter", 0, "id"), 20),
        (("substation", 2), None),
        (("colour",), None),
        ((), None),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_line_on_which_something_begins_is_found(path, line, newline):
    assert line_of(GRID.replace("\n", newline), path) == line


def test_what_stands_inside_a_statement_of_several_lines_has_no_line():
    text = 'a = 1\nsubstation = [\n  {id = "north"},\n  {id = "south"},\n]\n'

    assert line_of(text, ("substation",)) == 2
    assert line_of(text, ("substation", 1, "id")) is None


def test_inline_tables_share_the_line_they_stand_on():
    text = 'a = 1\nsubstation = [{id = "north"}, {id = "south"}]'

    assert line_of(text, ("substation", 1, "id")) == 2


KEYS = st.sampled_from(["id", "zone", "'quo ted'", '"dou\\"ble"', "a.b"])
VALUES = st.sampled_from(["1", '"[[substation]]"', '"""\nid = 1\n\n"""', "'''\n[[substation]]'''", "[\n1,\n# ]\n2]"])
NOISE = st.sampled_from(["", "\n", "# id = 1\n", "   \n"])


@given(st.lists(st.tuples(st.lists(st.tuples(NOISE, KEYS, VALUES), unique_by=lambda one: one[1]), NOISE), max_size=4))
def test_every_key_of_any_text_is_found_where_it_was_written(tables):
    text = ""
    written = {}
    for number, (entries, noise) in enumerate(tables):
        text += noise
        written["substation", number] = text.count("\n") + 1
        text += "[[substation]]\n"
        for noise_before, key, value in entries:
            text += noise_before
            (parsed,) = tomllib.loads(f"{key} = 1")
            written["substation", number, parsed] = text.count("\n") + 1
            text += f"{key} = {value}\n"

    assert {path: line_of(text, path) for path in written} == written
