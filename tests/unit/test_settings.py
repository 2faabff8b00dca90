import os

import pytest

from balancer.settings import BalancerSettings
from gateway.settings import GatewaySettings
from services.errors import Misconfigured
from services.grid import ALL
from services.settings import (
    CommonSettings,
    ConsoleSettings,
    LocalSettings,
    env_name,
    env_names,
    given,
    load,
    load_for_service,
    refuse_unknown,
)
from substations.settings import SubstationSettings

NEEDED = {
    "EVENLOAD_AMQP_URL": "amqp://someone:secret@127.0.0.1:5672/evenload",
    "EVENLOAD_LEDGER_URL": "sqlite:////tmp/ledger.sqlite",
}
SERVICES = [GatewaySettings, BalancerSettings, SubstationSettings]


@pytest.fixture(autouse=True)
def environ(monkeypatch):
    """Nothing of the developer's own settings, and a way to set some."""
    for name in os.environ:
        if name.upper().startswith("EVENLOAD_"):
            monkeypatch.delenv(name)

    def set_all(**variables):
        for name, value in {**NEEDED, **variables}.items():
            monkeypatch.setenv(name, value)

    return set_all


@pytest.mark.parametrize("own", SERVICES)
def test_the_two_addresses_are_enough_for_every_service(environ, own):
    environ()

    common, _ = load_for_service(own)

    assert (common.amqp_url, common.ledger_url) == tuple(NEEDED.values())
    assert (common.speed, common.grid, common.envelope_max) == (60, "default", 100)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_address_is_named(environ, monkeypatch, name):
    environ()
    monkeypatch.delenv(name)

    with pytest.raises(Misconfigured, match=f"^{name}: is not set"):
        load_for_service(GatewaySettings)


def test_an_empty_variable_counts_as_absent(environ):
    environ(EVENLOAD_LEDGER_URL="", EVENLOAD_SPEED="")

    with pytest.raises(Misconfigured, match=r"^EVENLOAD_LEDGER_URL: is not set, and has no default$"):
        load(CommonSettings)


@pytest.mark.parametrize("port", ["0", "70000", "-1", "http", "80.5"])
@pytest.mark.parametrize(
    ("name", "own"), [("EVENLOAD_GATEWAY_PORT", GatewaySettings), ("EVENLOAD_ADMIN_PORT", GatewaySettings)]
)
def test_what_is_no_port_is_refused_by_name_and_value(environ, name, own, port):
    environ(**{name: port})

    with pytest.raises(Misconfigured) as caught:
        load_for_service(own)
    assert name in str(caught.value)
    assert repr(port) in str(caught.value)


@pytest.mark.parametrize("port", [1, 8081, 65535])
def test_a_port_is_taken(environ, port):
    environ(EVENLOAD_GATEWAY_PORT=str(port))

    assert load_for_service(GatewaySettings)[1].port == port


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVENLOAD_SPEED", "0"),
        ("EVENLOAD_SPEED", "-60"),
        ("EVENLOAD_SPEED", "nan"),
        ("EVENLOAD_SPEED", "inf"),
        ("EVENLOAD_SPEED", "fast"),
        ("EVENLOAD_ENVELOPE_MAX", "0"),
        ("EVENLOAD_ENVELOPE_MAX", "101"),
        ("EVENLOAD_LOG_LEVEL", "LOUD"),
        ("EVENLOAD_LOG_FORMAT", "xml"),
        ("EVENLOAD_INSTANCE", "two words"),
        ("EVENLOAD_AMQP_URL", "http://127.0.0.1:5672"),
        ("EVENLOAD_AMQP_URL", "127.0.0.1"),
        ("EVENLOAD_AMQP_URL", "amqp://someone:secret@no..host/evenload"),
        ("EVENLOAD_AMQP_URL", "amqp://guest:guest@broker.example/evenload"),
        ("EVENLOAD_AMQP_URL", "amqps://someone:changeme@192.0.2.1/evenload"),
        ("EVENLOAD_AMQP_URL", "amqp://someone@broker.example/evenload"),
        ("EVENLOAD_AMQP_URL", "amqp://localhost.example/evenload"),
        ("EVENLOAD_LEDGER_SHARED", "perhaps"),
        ("EVENLOAD_STARTUP_TIMEOUT_S", "0"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(environ, name, value):
    environ(**{name: value})

    with pytest.raises(Misconfigured, match=f"^{name}: "):
        load_for_service(GatewaySettings)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_a_broker_on_this_machine_may_have_any_password(environ, host):
    for login in ("guest:guest@", ""):
        environ(EVENLOAD_AMQP_URL=f"amqp://{login}{host}/evenload")
        load_for_service(GatewaySettings)


@pytest.mark.parametrize("heartbeat", ["1", "600"])
def test_the_brokers_address_may_carry_a_heartbeat(environ, heartbeat):
    address = f"amqp://u:p@127.0.0.1/evenload?heartbeat={heartbeat}"
    environ(EVENLOAD_AMQP_URL=address)

    assert load_for_service(GatewaySettings)[0].amqp_url == address


@pytest.mark.parametrize("heartbeat", ["0", "601", "-1", "1.5", "ten", ""])
def test_a_heartbeat_that_cannot_be_meant_is_refused(environ, heartbeat):
    environ(EVENLOAD_AMQP_URL=f"amqp://u:p@127.0.0.1/evenload?heartbeat={heartbeat}")

    with pytest.raises(Misconfigured, match="EVENLOAD_AMQP_URL: its heartbeat must be a whole number of seconds"):
        load_for_service(GatewaySettings)


def test_a_password_never_stands_in_a_refusal(environ):
    environ(EVENLOAD_AMQP_URL="http://someone:do-not-print-me@broker.example/evenload")

    with pytest.raises(Misconfigured) as caught:
        load_for_service(GatewaySettings)
    assert "do-not-print-me" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "own"),
    [
        ("EVENLOAD_BALANCER_POLICY", "best", BalancerSettings),
        ("EVENLOAD_BALANCER_SCRAPE_INTERVAL_S", "0", BalancerSettings),
        ("EVENLOAD_BALANCER_PREFETCH", "0", BalancerSettings),
        ("EVENLOAD_SUBSTATION_TICK_S", "0", SubstationSettings),
        ("EVENLOAD_SUBSTATION_SHARING", "fair", SubstationSettings),
        ("EVENLOAD_SUBSTATION_FLOOR_KW", "-1", SubstationSettings),
        ("EVENLOAD_SUBSTATION_IDS", "north,so uth", SubstationSettings),
        ("EVENLOAD_SUBSTATION_IDS", "north,../south", SubstationSettings),
        ("EVENLOAD_SUBSTATION_IDS", "north,*", SubstationSettings),
        ("EVENLOAD_GATEWAY_BACKLOG_MAX", "0", GatewaySettings),
        ("EVENLOAD_GATEWAY_WAIT_MAX_S", "0", GatewaySettings),
    ],
)
def test_a_services_own_setting_is_checked_too(environ, name, value, own):
    environ(**{name: value})

    with pytest.raises(Misconfigured, match=f"^{name}: "):
        load_for_service(own)


def test_every_fault_is_told_at_once(environ):
    environ(EVENLOAD_SPEED="-1", EVENLOAD_ADMIN_PORT="0", EVENLOAD_LOG_LEVEL="LOUD")

    with pytest.raises(Misconfigured) as caught:
        load(CommonSettings)
    for name in ("EVENLOAD_SPEED", "EVENLOAD_ADMIN_PORT", "EVENLOAD_LOG_LEVEL"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("EVENLOAD_LEDGER_URI", "EVENLOAD_LEDGER_URL"),
        ("EVENLOAD_SPED", "EVENLOAD_SPEED"),
        ("EVENLOAD_GATEWAY_PROT", "EVENLOAD_GATEWAY_PORT"),
        ("EVENLOAD_GATEWAY_WAIT_MAX", "EVENLOAD_GATEWAY_WAIT_MAX_S"),
        ("EVENLOAD_AMQB_URL_FILE", "EVENLOAD_AMQP_URL_FILE"),
        ("EVENLOAD_SPEED_FIEL", "EVENLOAD_SPEED_FILE"),
        ("EVENLOAD_SPEED_FILE_FILE", "EVENLOAD_SPEED_FILE"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_right_one(environ, wrong, right):
    environ(**{wrong: "1"})

    with pytest.raises(Misconfigured) as caught:
        load_for_service(GatewaySettings)
    assert str(caught.value) == f"{wrong} is no setting of Evenload: did you mean {right}?"


def test_a_name_like_no_other_is_refused_without_a_guess(environ):
    environ(EVENLOAD_XYZZY_PLUGH_PLOVER="1")

    with pytest.raises(Misconfigured, match="EVENLOAD_XYZZY_PLUGH_PLOVER is no setting of Evenload: remove it"):
        load_for_service(GatewaySettings)


def test_one_environment_serves_all_services():
    environ = {name: "" for kind in (CommonSettings, LocalSettings, *SERVICES) for name in env_names([kind])}
    environ |= {"PATH": "/bin", "EVENLOADER": "not our prefix"}

    for own in (*SERVICES, None):
        refuse_unknown(environ, own)


@pytest.mark.parametrize("own", SERVICES)
def test_a_misspelt_variable_of_another_service_is_that_ones_business(own):
    others = [kind for kind in SERVICES if kind is not own]

    refuse_unknown({env_name(kind, "misspelt"): "1" for kind in others}, own)
    with pytest.raises(Misconfigured):
        refuse_unknown({env_name(own, "misspelt"): "1"}, own)


def test_the_ids_of_a_substations_process_are_a_list(environ):
    environ(EVENLOAD_SUBSTATION_IDS="north, south-2 ,east")
    assert load_for_service(SubstationSettings)[1].hosted_ids() == ["north", "south-2", "east"]

    environ(EVENLOAD_SUBSTATION_IDS="")
    assert load_for_service(SubstationSettings)[1].hosted_ids() == []

    environ(EVENLOAD_SUBSTATION_IDS="*")
    assert load_for_service(SubstationSettings)[1].hosted_ids() == [ALL]


@pytest.fixture
def secret(tmp_path):
    """Writes a file and returns its path."""

    def write(content):
        path = tmp_path / "secret"
        path.write_bytes(content)
        return str(path)

    return write


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_a_setting_may_stand_in_a_file_which_wins_and_whose_last_line_break_does_not_count(environ, secret, end):
    environ(EVENLOAD_SPEED="120", EVENLOAD_SPEED_FILE=secret(b"600" + end))

    assert load(CommonSettings).speed == 600
    assert given("EVENLOAD_SPEED") == "600"


def test_every_setting_may_stand_in_a_file(environ, tmp_path):
    environ()
    values = {
        "EVENLOAD_AMQP_URL": "amqp://from:file@127.0.0.1/evenload",
        "EVENLOAD_LEDGER_URL": "postgresql://from:file@127.0.0.1/evenload",
        "EVENLOAD_SUBSTATION_IDS": "*",
        "EVENLOAD_CONSOLE_PASSWORD": " with spaces ",
    }
    for name, value in values.items():
        (tmp_path / name).write_text(value + "\n")
    environ(**{name + "_FILE": str(tmp_path / name) for name in values})

    common, own = load_for_service(SubstationSettings)

    assert [common.amqp_url, common.ledger_url, own.ids, load(ConsoleSettings).password] == list(values.values())


def test_what_no_file_is_named_for_stays_as_it_is(environ):
    environ(EVENLOAD_SPEED="120", EVENLOAD_SPEED_FILE="", EVENLOAD_GRID="")

    assert (load(CommonSettings).speed, given("EVENLOAD_SPEED"), given("EVENLOAD_GRID")) == (120, "120", None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty: "),
        (b"\n", "is empty: "),
        (b"\xff\xfe", "is not UTF-8: "),
        (None, "cannot be read (No such file"),
    ],
)
def test_a_file_without_a_value_is_refused_with_its_variable_and_path(environ, secret, tmp_path, content, told):
    path = str(tmp_path / "nowhere") if content is None else secret(content)
    environ(EVENLOAD_AMQP_URL_FILE=path)

    with pytest.raises(Misconfigured) as caught:
        load_for_service(GatewaySettings)
    assert str(caught.value).startswith(f"EVENLOAD_AMQP_URL_FILE: {path} {told}")


def test_what_stands_in_a_file_is_never_told(environ, secret):
    environ(EVENLOAD_LOG_LEVEL_FILE=secret(b"do-not-print-me"))

    with pytest.raises(Misconfigured, match=r"^EVENLOAD_LOG_LEVEL_FILE: input should be 'DEBUG'") as caught:
        load(CommonSettings)
    assert "do-not-print-me" not in str(caught.value)


def test_an_instance_has_the_name_that_was_given_or_one_of_its_own(environ):
    environ(EVENLOAD_INSTANCE="gateway-7")
    assert load(CommonSettings).instance_name("gateway") == "gateway-7"

    environ(EVENLOAD_INSTANCE="")
    names = {load(CommonSettings).instance_name("gateway") for _ in range(20)}
    assert len(names) > 1
    assert all(name.startswith("gateway-") for name in names)


def test_every_setting_says_what_it_is_for():
    for kind in (CommonSettings, LocalSettings, *SERVICES):
        assert all(field.description for field in kind.model_fields.values())


def test_a_crash_point_that_is_none_is_refused_with_the_known_ones(environ):
    environ(EVENLOAD_CRASH_POINT="gateway.comitted")
    with pytest.raises(Misconfigured, match=r"^EVENLOAD_CRASH_POINT: a crash point.*gateway\.committed.*sweep"):
        load_for_service(GatewaySettings)

    environ(EVENLOAD_CRASH_POINT="gateway.committed:2")
    assert load(CommonSettings).crash_point == "gateway.committed:2"
