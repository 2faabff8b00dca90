"""Which addresses name a ledger, and which could quietly name another one than the one that is meant."""

import contextlib
import os
import sqlite3
from pathlib import Path

import pytest

from services.errors import Misconfigured
from services.ledger.address import sqlite_path


def refusal(url):
    with pytest.raises(Misconfigured) as caught:
        sqlite_path(url)
    said = str(caught.value)
    assert said.startswith("EVENLOAD_LEDGER_URL")
    assert ": " in said
    assert "\n" not in said
    return said


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_four_slashes_begin_an_absolute_path_and_three_one_from_the_working_folder(here):
    assert sqlite_path("sqlite:////data/ledger.sqlite").as_posix() == "/data/ledger.sqlite"
    assert sqlite_path("sqlite:///data/ledger.sqlite") == here / "data" / "ledger.sqlite"


@pytest.mark.parametrize("name", ["a b/ledger.sqlite", "José/Übersicht-12:30.db", "100%/ledger+1,2.sqlite", "a..b/…"])
def test_what_is_a_plain_path_is_taken_as_it_stands(here, name):
    assert sqlite_path(f"sqlite:///{name}") == here / name


@pytest.mark.parametrize("folder", ["C#", "what?", "it's", "100%25", "$HOME", " blank ", "back\\slash"])
def test_a_folder_that_is_there_may_have_any_name_and_one_that_is_to_be_made_may_not(here, folder):
    assert "would become a part of a name" in refusal(f"sqlite:///{folder}/ledger.sqlite")
    (here / folder).mkdir()
    assert sqlite_path(f"sqlite:///{folder}/ledger.sqlite") == here / folder / "ledger.sqlite"


@pytest.mark.parametrize("edge", ["\r", " ", "\n", "\t", "\r\n", "\u00a0", "\u3000"])
@pytest.mark.parametrize("url", ["sqlite:////data/ledger.sqlite", "postgresql://user:secret@host:1/evenload"])
def test_white_space_around_an_address_is_refused_and_the_address_not_told(url, edge):
    said = "EVENLOAD_LEDGER_URL begins or ends with white space: remove it (a Windows line end counts, too)"
    assert [refusal(url + edge), refusal(edge + url)] == [said] * 2


@pytest.mark.parametrize("sign", ["\r", "\n", "\x00", "\x1b", "\u200b", "\ufeff", "\u202e"])
def test_a_control_or_invisible_character_is_refused(sign):
    for url in (f"sqlite:////da{sign}ta/ledger.sqlite", f"postgresql://user:sec{sign}ret@host:1/evenload"):
        assert "holds a control or an invisible character: write it anew" in refusal(url)


def test_bytes_that_are_not_utf_8_may_stand_in_a_path_and_nowhere_else(here):
    latin = os.fsdecode(b"caf\xe9")

    assert sqlite_path(f"sqlite:///{latin}/ledger.sqlite") == here / latin / "ledger.sqlite"
    assert "write it anew, by hand" in refusal(f"postgresql://user:{latin}@host:1/evenload")


@pytest.mark.parametrize("name", ["می\u200cخواهم", "👩\u200d💻", "soft\u00adhyphen", "~", "C#"])
def test_a_ledger_in_a_folder_that_is_there_or_that_nobody_wrote_into_the_address_has_any_name(here, name):
    absolute = f"sqlite:///{here}/{name}/ledger.sqlite"
    assert sqlite_path(absolute, is_default=True) == here / name / "ledger.sqlite"

    (here / name).mkdir()
    assert sqlite_path(absolute) == here / name / "ledger.sqlite"


@pytest.mark.parametrize("name", ["~", "~me", ":memory:"])
def test_a_folder_that_an_earlier_start_made_of_a_home_folder_is_refused_also_where_it_is_there(here, name):
    (here / name).mkdir()

    assert "is no plain path, and nothing expands it" in refusal(f"sqlite:///{name}/ledger.sqlite")


def long_path(folder, length_bytes):
    """A path in a folder, of so many bytes, of parts that a file system takes."""
    path = str(folder)
    while length_bytes - len(path) > 101:
        path += "/" + "d" * 99
    return path + "/" + "f" * (length_bytes - len(path) - 1)


def test_a_path_that_sqlite_opens_is_taken_and_one_that_is_longer_is_refused(here):
    longest = Path(long_path(here, 504))
    longest.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(longest)) as database:
        database.execute("PRAGMA journal_mode = WAL")

    assert sqlite_path(f"sqlite:///{longest}") == longest
    for length_bytes in (505, 628):
        said = refusal(f"sqlite:///{long_path(here, length_bytes)}")
        assert "the path of the ledger is longer than 504 bytes, which SQLite cannot open: name a file with a" in said


def test_a_short_name_of_a_long_path_is_refused_too(here):
    (here / "short").symlink_to(long_path(here, 500))

    assert "is longer than 504 bytes" in refusal("sqlite:///short/ledger.sqlite")


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/data/ledger.sqlite?timeout=30", "'?' in 'sqlite:////data/ledger.sqlite?timeout=30' would become a part"),
        ("/data/ledger.sqlite?vfs=/unix/none", "'?' in"),
        ("/data/ledger.sqlite#main", "'#' in"),
        ("/data/my%20ledger.sqlite", "'%20' in"),
        ("/data/$HOME/ledger.sqlite", "'$' in"),
        ("/data/ledger.sqlite'", '"\'" in'),
        ('/data/ledger.sqlite"', "'\"' in"),
        ("C:\\data\\ledger.sqlite", "would become a part of a name"),
        (" ledger.sqlite", "' ' in"),
        ("/data/ ledger.sqlite", "' ' in"),
        ("~/ledger.sqlite", "is no plain path, and nothing expands it"),
        ("/~/ledger.sqlite", "is no plain path"),
        ("~somebody/ledger.sqlite", "is no plain path"),
        (":memory:", "is no plain path"),
        ("/:memory:", "is no plain path"),
        ("file:ledger.sqlite", "is no plain path"),
        ("", "names no file"),
        ("/", "names no file"),
        (".", "names no file"),
        ("..", "names no file"),
        ("/data/", "names no file"),
        ("/dev/null", "/dev/null is no usable ledger (it is no ordinary file): name another file"),
        ("/tmp", "/tmp is no usable ledger (it is a folder): name a file in it"),  # noqa: S108
        ("/" + "x" * 300, "cannot be used (File name too long): name a file where this user may write"),
    ],
)
def test_a_path_that_another_program_would_read_otherwise_is_refused(here, path, told):
    assert told in refusal(f"sqlite:///{path}")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        *("SQLITE:///x", "Sqlite:////x", "sqlite+aiosqlite:///x", "sqlite3:///x", "sqlite://x", "sqlite://:memory:"),
        *("sqlite:/x", "sqlite:x", "file:///x", "/tmp/x", "", '"sqlite:///x"', "POSTGRESQL://u:secret@h/x"),  # noqa: S108
    ],
)
def test_another_scheme_is_refused_and_the_right_ones_are_told(url):
    said = refusal(url)
    assert "is no ledger this version knows: give sqlite:///path/to/ledger.sqlite or postgresql://" in said
    assert "secret" not in said


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_the_address_of_a_postgresql_is_no_path(scheme):
    assert sqlite_path(f"{scheme}://user:a b%20c@host:1/evenload?sslmode=require") is None
