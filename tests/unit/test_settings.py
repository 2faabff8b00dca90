import os

import pytest
from yarl import URL

from balancer.settings import BalancerSettings
from gateway.settings import GatewaySettings
from services.errors import Misconfigured
from services.grid import ALL
from services.service_links import service_links
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


@pytest.mark.parametrize("heartbeat", ["0", "1", "600"])
def test_the_brokers_address_may_carry_a_heartbeat(environ, heartbeat):
    address = f"amqp://u:p@127.0.0.1/evenload?heartbeat={heartbeat}"
    environ(EVENLOAD_AMQP_URL=address)

    assert load_for_service(GatewaySettings)[0].amqp_url == address


@pytest.mark.parametrize("heartbeat", ["601", "65534", "-1", "1.5", "ten", "٥", ""])
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


LINKS = {
    "EVENLOAD_PORT": "tcp://10.0.0.1:80",
    "EVENLOAD_SERVICE_HOST": "10.0.0.1",
    "EVENLOAD_SERVICE_PORT": "80",
    "EVENLOAD_SERVICE_PORT_HTTP": "80",
    "EVENLOAD_PORT_80_TCP": "tcp://10.0.0.1:80",
    "EVENLOAD_PORT_80_TCP_ADDR": "10.0.0.1",
    "EVENLOAD_PORT_80_TCP_PORT": "80",
    "EVENLOAD_PORT_80_TCP_PROTO": "tcp",
    "EVENLOAD_GATEWAY_PORT": "tcp://10.0.0.2:8080",
    "EVENLOAD_GATEWAY_SERVICE_HOST": "10.0.0.2",
    "EVENLOAD_GATEWAY_PORT_8080_TCP_PROTO": "tcp",
    "EVENLOAD_BALANCER_SERVICE_PORT": "8081",
    "EVENLOAD_SUBSTATION_PORT_53_UDP": "udp://10.0.0.3:53",
    "EVENLOAD_ADMIN_PORT": "tcp://[fd00::1]:8081",
    "EVENLOAD_MY_OTHER_GATEWAY_PORT_9_SCTP_ADDR": "fd00::1",
    "EVENLOAD_NAME": "/one/evenload",
    "EVENLOAD_ENV_PATH": "/usr/bin",
}


@pytest.mark.parametrize("own", SERVICES)
def test_what_kubernetes_and_docker_write_for_a_service_of_our_name_is_ignored(environ, own):
    environ(**LINKS)

    common, loaded = load_for_service(own)

    assert (common.admin_port, load(LocalSettings).gateway_port) == (None, 8080)
    assert getattr(loaded, "port", 8080) == 8080
    assert service_links(os.environ) == sorted(LINKS)
    refuse_unknown(os.environ, None)


def test_a_port_in_a_file_counts_also_beside_a_variable_of_kubernetes(environ, secret):
    environ(EVENLOAD_GATEWAY_PORT="tcp://10.0.0.2:8080", EVENLOAD_GATEWAY_PORT_FILE=secret(b"9090\n"))

    assert load(LocalSettings).gateway_port == 9090


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVENLOAD_PORT", "8080"),
        ("EVENLOAD_GATEWAY_PROT", "tcp://10.0.0.1:80"),
        ("EVENLOAD_PORT_HTTP_TCP", "tcp://10.0.0.1:80"),
        ("EVENLOAD_SERVICE_PORT", "http"),
        ("EVENLOAD_NAME", "mine"),
    ],
)
def test_what_only_looks_like_a_variable_of_kubernetes_is_refused(environ, name, value):
    environ(**{name: value})

    with pytest.raises(Misconfigured, match=f"^{name} is no setting of Evenload"):
        load_for_service(GatewaySettings)


@pytest.mark.parametrize("port", ["tpc://10.0.0.1:80", "10.0.0.1:80", "http://10.0.0.1:80"])
def test_a_port_that_nobody_wrote_for_kubernetes_is_refused(environ, port):
    environ(EVENLOAD_GATEWAY_PORT=port)

    with pytest.raises(Misconfigured, match=r"^EVENLOAD_GATEWAY_PORT: input should be a valid integer"):
        load(LocalSettings)


LINE_END = "it holds the end of a line: remove it, and save a file of variables with the line ends of Unix (LF)"
AROUND = "it begins or ends with white space: remove that"


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("EVENLOAD_AMQP_URL", "amqp://u:do-not-print-me@127.0.0.1/evenload\r", LINE_END),
        ("EVENLOAD_AMQP_URL", "amqp://u:do-not-print-me@127.0.0.1/even\nload", LINE_END),
        ("EVENLOAD_AMQP_URL", " amqp://u:do-not-print-me@127.0.0.1/evenload", AROUND),
        ("EVENLOAD_LEDGER_URL", "sqlite:////tmp/ledger.sqlite\r\n", LINE_END),
        ("EVENLOAD_LEDGER_URL", "sqlite:////tmp/ledger.sqlite\u00a0", AROUND),
        ("EVENLOAD_SPEED", "60\r", LINE_END),
        ("EVENLOAD_ADMIN_PORT", " 8081", AROUND),
        ("EVENLOAD_GRID", "default\t", AROUND),
        ("EVENLOAD_GRID", "def\x07ault", "it holds a control character: remove that"),
        ("EVENLOAD_LOG_LEVEL", "INFO\r", LINE_END),
    ],
)
def test_white_space_around_a_value_and_control_characters_are_refused_by_name(environ, name, value, told):
    environ(**{name: value})

    with pytest.raises(Misconfigured) as caught:
        load(CommonSettings)
    assert str(caught.value).startswith(f"{name}: {told}")
    assert "do-not-print-me" not in str(caught.value)


def test_a_data_folder_with_a_blank_inside_is_taken_and_one_with_a_line_end_is_not_made(environ):
    environ(EVENLOAD_DATA_DIR="/srv/my data")
    assert str(load(LocalSettings).data_dir) == "/srv/my data"

    environ(EVENLOAD_DATA_DIR="/srv/data\r")
    with pytest.raises(Misconfigured, match=r"^EVENLOAD_DATA_DIR: it holds the end of a line"):
        load(LocalSettings)


def test_a_password_may_end_with_a_blank_but_not_with_a_line_end(environ):
    environ(EVENLOAD_CONSOLE_PASSWORD=" secret ")
    assert load(ConsoleSettings).password == " secret "

    environ(EVENLOAD_CONSOLE_PASSWORD="do-not-print-me\r")
    with pytest.raises(Misconfigured, match=r"^EVENLOAD_CONSOLE_PASSWORD: it holds the end of a line") as caught:
        load(ConsoleSettings)
    assert "do-not-print-me" not in str(caught.value)


@pytest.mark.parametrize("sign", [*"#/?[]\\ %", "[x]", "%z", "?b=", "\u3000"])
@pytest.mark.parametrize("before", ["do-not-print-me", "12"])
def test_a_sign_in_a_password_that_must_be_encoded_is_told_with_its_encoding(environ, sign, before):
    environ(EVENLOAD_AMQP_URL=f"amqp://someone:{before}{sign}x@broker.example:5672/evenload")

    with pytest.raises(Misconfigured) as caught:
        load_for_service(GatewaySettings)
    assert str(caught.value) == (
        "EVENLOAD_AMQP_URL: a user, password or vhost holds a sign that must be encoded: write # as %23, / as %2F, "
        r"? as %3F, @ as %40, [ as %5B, ] as %5D, \ as %5C, a blank as %20 and % as %25"
    )


def test_a_password_of_encoded_signs_is_taken_whole(environ):
    address = "amqp://someone:a%23%2F%3F%40%25%5B%5d%5C%20b@broker.example/evenload?heartbeat=10"
    environ(EVENLOAD_AMQP_URL=address)

    assert URL(load(CommonSettings).amqp_url).password == "a#/?@%[]\\ b"


@pytest.mark.parametrize("vhost", ["even load", "100%", "a@b", "even\u00a0load"])
def test_a_sign_in_a_vhost_that_must_be_encoded_is_refused(environ, vhost):
    environ(EVENLOAD_AMQP_URL=f"amqp://u:p@broker.example/{vhost}?heartbeat=9")

    with pytest.raises(Misconfigured, match=r"^EVENLOAD_AMQP_URL: a user, password or vhost holds a sign"):
        load(CommonSettings)


@pytest.mark.parametrize("place", ["::1", "::1:5672", "2001:db8::7", "1:2:3:4:5:6:7:8:5672", "fe80::1%eth0", "[::1"])
@pytest.mark.parametrize("login", ["", "u:do-not-print-me@"])
def test_an_ipv6_address_without_brackets_is_told(environ, login, place):
    environ(EVENLOAD_AMQP_URL=f"amqp://{login}{place}/evenload")

    with pytest.raises(Misconfigured) as caught:
        load(CommonSettings)
    assert str(caught.value) == (
        "EVENLOAD_AMQP_URL: its host is an IPv6 address without brackets: "
        "write it like amqp://user:password@[::1]:5672/evenload"
    )


@pytest.mark.parametrize(
    "address",
    [
        "amqp://u:p@my_broker/evenload",
        "amqp://u:p@broker.example?heartbeat=9",
        "amqp://u:p@[2001:db8::7]:5672/evenload",
        "amqp://u:p:q@127.0.0.1:5672/evenload",
        "amqps://u:p@h/v?cafile=/home/me@corp/ca.pem&heartbeat=9",
        "amqps://u:p@h?cafile=/home/me@corp/ca.pem",
        "amqps://localhost/v?auth=external&certfile=/home/me@corp/own.pem",
    ],
)
def test_unusual_but_sound_addresses_of_a_broker_are_taken(environ, address):
    environ(EVENLOAD_AMQP_URL=address)

    assert load(CommonSettings).amqp_url == address


@pytest.mark.parametrize("port", ["0", "65536", "99999", "-1", "amqp", "56 72"])
def test_a_port_of_the_broker_that_is_none_is_told(environ, port):
    environ(EVENLOAD_AMQP_URL=f"amqp://someone:do-not-print-me@127.0.0.1:{port}/evenload")

    with pytest.raises(Misconfigured) as caught:
        load_for_service(GatewaySettings)
    assert str(caught.value) == "EVENLOAD_AMQP_URL: its port must be a number from 1 to 65535"


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
        (b"caf\xe9", "is not UTF-8: save it as UTF-8"),
        ("amqp://".encode("utf-16"), "is UTF-16, as programs on Windows may write it: save it as UTF-8"),
        ("amqp://".encode("utf-16-be"), "is UTF-16, as programs on Windows may write it: save it as UTF-8"),
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
