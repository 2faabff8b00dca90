"""A value or a name that only looks like the one that was meant is refused, and what was meant is taken."""

import os
import re
from pathlib import Path
from typing import get_args

import pytest

from gateway.settings import GatewaySettings
from services.errors import Misconfigured
from services.local.plan import make_plan
from services.settings import (
    CommonSettings,
    ConsoleSettings,
    LocalSettings,
    env_name,
    given,
    load,
    load_for_service,
    refuse_unknown,
)
from substations.settings import SubstationSettings

NEEDED = {"EVENLOAD_AMQP_URL": "amqp://u:p@127.0.0.1/evenload", "EVENLOAD_LEDGER_URL": "sqlite:////tmp/ledger.sqlite"}
PATHS = [
    *((kind, name) for kind in (LocalSettings, SubstationSettings) for name in kind.model_fields),
    (CommonSettings, "grid"),
]
PATHS = [
    pytest.param(kind, name, id=env_name(kind, name))
    for kind, name in PATHS
    if Path in (kind.model_fields[name].annotation, *get_args(kind.model_fields[name].annotation))
    or name in ("grid", "prometheus")
]


@pytest.fixture(autouse=True)
def environ(monkeypatch, tmp_path):
    """Nothing of the developer's own settings, an empty working folder, and a way to set variables."""
    for name in os.environ:
        if name.upper().startswith("EVENLOAD_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def set_all(**variables):
        for name, value in {**NEEDED, **variables}.items():
            monkeypatch.setenv(name, value)

    return set_all


def refusal(read):
    with pytest.raises(Misconfigured) as caught:
        read()
    return str(caught.value)


def test_every_setting_that_is_a_path_is_among_those_that_are_tried():
    assert {one.id for one in PATHS} == {
        *("EVENLOAD_DATA_DIR", "EVENLOAD_CACHE_DIR", "EVENLOAD_GRID", "EVENLOAD_PROMETHEUS"),
        *("EVENLOAD_SUBSTATION_TICK_LOG", "EVENLOAD_SUBSTATION_WITNESS"),
    }


@pytest.mark.parametrize(("kind", "field"), PATHS)
@pytest.mark.parametrize(
    ("path", "sign"),
    [
        ("~", "~"),
        ("~/data", "~"),
        ("~me/data", "~"),
        ('"/srv/q"', '"'),
        ("'/srv/q'", "'"),
        ("\u201c/srv/q\u201d", "\u201c"),
        ("`pwd`/data", "`"),
        ('/srv/q"', '"'),
        ("/srv/'my data'/x", "'"),
        ("$HOME/data", "$H"),
        ("/srv/${NAME}/data", "${"),
        ("$(pwd)/data", "$("),
        ("/srv/my\\ data", "\\"),
        ("C:\\data", "\\"),
        ("C:/data", "C:"),
        ("file:///srv/data", "file:"),
    ],
)
def test_what_only_a_shell_would_change_in_a_path_is_refused(environ, kind, field, path, sign):
    name = env_name(kind, field)
    environ(**{name: path})

    cure = "write the path in full, without ~, quotes, variables and backslashes"
    said = f"{name}: no shell reads it, so {sign!r} would become a part of a name: {cure} (got {path!r})"
    assert refusal(lambda: load(kind)) == said


@pytest.mark.parametrize("name", ["it's", 'q"', "$HOME", "my\\ data", "C:", "a~b", "می\u200cخواهم"])
def test_a_folder_that_is_there_may_have_any_name(environ, tmp_path, name):
    for folder in (name, f"./{name}", str(tmp_path / name)):
        Path(name).mkdir(exist_ok=True)
        environ(EVENLOAD_DATA_DIR=f"{folder}/data")

        assert load(LocalSettings).data_dir == Path(folder, "data")


@pytest.mark.parametrize("name", ["~", '"'])
def test_a_folder_that_an_earlier_start_made_is_refused_unless_it_is_named_on_purpose(environ, name):
    Path(name).mkdir()
    environ(EVENLOAD_DATA_DIR=f"{name}/data")
    assert "would become a part of a name" in refusal(lambda: load(LocalSettings))

    environ(EVENLOAD_DATA_DIR=f"./{name}/data")
    assert load(LocalSettings).data_dir == Path(name, "data")


@pytest.mark.parametrize(
    "name",
    ["می\u200cخواهم", "👩\u200d💻", "soft\u00adhyphen", "a$", "100%", "50€, it's", "a b", 'it\'s "data" $HOME; x'],
)
def test_a_data_folder_of_an_unusual_name_is_made_and_holds_the_ledger(environ, tmp_path, monkeypatch, name):
    environ(EVENLOAD_DATA_DIR=name, EVENLOAD_PROMETHEUS="0")
    monkeypatch.delenv("EVENLOAD_LEDGER_URL")

    plan = make_plan(load(LocalSettings))

    assert plan.ledger_path == tmp_path / name / "ledger.sqlite"
    environ(EVENLOAD_LEDGER_URL=plan.ledger_url)
    assert load(CommonSettings).ledger_url == f"sqlite:///{tmp_path}/{name}/ledger.sqlite"


@pytest.mark.parametrize("path", ["~/secret", '"secret"', "$HOME/secret"])
def test_the_path_of_a_file_with_a_value_is_judged_like_any_other(environ, path):
    environ(EVENLOAD_SPEED_FILE=path)

    said = refusal(lambda: load(CommonSettings))
    assert said.startswith(f"EVENLOAD_SPEED_FILE: {path}: no shell reads it, so ")


MARK = "it begins with a byte order mark: remove that, and save a file of variables as UTF-8 without one"


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (CommonSettings, "EVENLOAD_AMQP_URL", "amqp://u:p@127.0.0.1/evenload"),
        (CommonSettings, "EVENLOAD_LEDGER_URL", "sqlite:////tmp/ledger.sqlite"),
        (CommonSettings, "EVENLOAD_LOG_LEVEL", "INFO"),
        (CommonSettings, "EVENLOAD_GRID", "default"),
        (LocalSettings, "EVENLOAD_DATA_DIR", "/srv/data"),
        (ConsoleSettings, "EVENLOAD_CONSOLE_PASSWORD", "secret"),
    ],
)
def test_a_byte_order_mark_is_refused_in_a_variable_and_taken_off_a_file(environ, tmp_path, kind, name, value):
    environ(**{name: f"\ufeff{value}"})
    assert refusal(lambda: load(kind)).startswith(f"{name}: {MARK}")

    (tmp_path / "value").write_bytes(f"{value}\r\n".encode("utf-8-sig"))
    environ(**{f"{name}_FILE": str(tmp_path / "value")})
    assert given(name) == value
    assert str(getattr(load(kind), name.rpartition("EVENLOAD_")[2].removeprefix("CONSOLE_").lower())) == value


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (CommonSettings, "EVENLOAD_AMQP_URL", "amqp://u:p@127.0.0.1/even{}load"),
        (CommonSettings, "EVENLOAD_AMQP_URL", "amqp://u:p@127.0.0.1/evenload{}"),
        (CommonSettings, "EVENLOAD_INSTANCE", "gateway{}7"),
        (CommonSettings, "EVENLOAD_SPEED", "6{}0"),
        (ConsoleSettings, "EVENLOAD_CONSOLE_USER", "operator{}"),
        (ConsoleSettings, "EVENLOAD_CONSOLE_VHOST", "even{}load"),
        (SubstationSettings, "EVENLOAD_SUBSTATION_IDS", "north{},south"),
    ],
)
@pytest.mark.parametrize(
    ("sign", "told"),
    [
        ("\u200b", "it holds an invisible character (U+200B ZERO WIDTH SPACE): write it anew, by hand"),
        ("\ufeff", "it holds an invisible character (U+FEFF ZERO WIDTH NO-BREAK SPACE): write it anew, by hand"),
        ("\u00ad", "it holds an invisible character (U+00AD SOFT HYPHEN): write it anew, by hand"),
        (os.fsdecode(b"\xe9"), "it holds bytes that are not UTF-8: write it anew in UTF-8"),
    ],
)
def test_a_character_that_nobody_sees_is_refused_by_name(environ, kind, name, value, sign, told):
    environ(**{name: value.format(sign)})

    assert refusal(lambda: load(kind)).startswith(f"{name}: {told}")


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (CommonSettings, "EVENLOAD_SPEED", '"60"'),
        (CommonSettings, "EVENLOAD_AMQP_URL", "'amqp://u:p@127.0.0.1/evenload'"),
        (ConsoleSettings, "EVENLOAD_CONSOLE_VHOST", '"evenload"'),
    ],
)
def test_quotes_around_a_value_are_refused(environ, kind, name, value):
    environ(**{name: value})

    said = f"{name}: it stands in quotes, which only a shell takes away: remove them"
    assert refusal(lambda: load(kind)).startswith(said)


def test_a_password_may_hold_any_sign_of_a_text_and_nothing_else(environ):
    environ(EVENLOAD_CONSOLE_PASSWORD='"a\u200db~$HOME"')
    assert load(ConsoleSettings).password == '"a\u200db~$HOME"'

    environ(EVENLOAD_CONSOLE_PASSWORD=os.fsdecode(b"caf\xe9"))
    told = "it holds bytes that are not UTF-8: write it anew in UTF-8"
    assert refusal(lambda: load(ConsoleSettings)) == f"EVENLOAD_CONSOLE_PASSWORD: {told}"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("evenload_ledger_url", lambda: load_for_service(GatewaySettings)),
        ("Evenload_Ledger_Url", lambda: load_for_service(SubstationSettings)),
        ("EVENLOAD_ledger_url_file", lambda: load_for_service(GatewaySettings)),
        ("evenload_gateway_port", lambda: load_for_service(GatewaySettings)),
        ("evenload_ledger_url", lambda: refuse_unknown(os.environ, None)),
        ("evenload_data_dir", lambda: load(LocalSettings)),
        ("evenload_console_password", lambda: load(ConsoleSettings)),
    ],
)
def test_a_name_in_small_letters_is_refused_in_services_in_commands_and_in_make_run(environ, name, read):
    environ(**{name: "sqlite:////srv/other.sqlite"})

    assert refusal(read) == f"{name} is no setting of Evenload: did you mean {name.upper()}?"


@pytest.mark.parametrize("wrong", ["\ufeffEVENLOAD_SPEED", "EVENLOAD_\u200bSPEED", "EVENLOAD_SPEED "])
def test_a_name_with_signs_that_nobody_sees_is_refused(environ, wrong):
    environ(**{wrong: "600"})

    said = f"{''.join(one if one.isprintable() else ascii(one)[1:-1] for one in wrong)} is no setting of Evenload: "
    assert refusal(lambda: load_for_service(GatewaySettings)) == f"{said}did you mean EVENLOAD_SPEED?"


def test_a_name_in_small_letters_sets_nothing_and_names_of_others_are_let_through(environ):
    environ(
        evenload_gateway_host="0.0.0.0",
        evenload_version="7",
        evenload="x",
        Evenload_Home="/srv",
        evenload_ledger_uri="x",
    )

    common, own = load_for_service(SubstationSettings)  # a gateway's variable is that one's business

    assert (common.ledger_url, own.ids) == (NEEDED["EVENLOAD_LEDGER_URL"], "")
    assert GatewaySettings().host == "127.0.0.1"


def test_what_is_told_of_a_path_holds_no_value_of_a_file(environ, tmp_path):
    (tmp_path / "value").write_text("~/do-not-print-me")
    environ(EVENLOAD_DATA_DIR_FILE=str(tmp_path / "value"))

    said = refusal(lambda: load(LocalSettings))
    assert re.match(r"EVENLOAD_DATA_DIR_FILE: no shell reads it, so '~' would", said)
    assert "do-not-print-me" not in said
