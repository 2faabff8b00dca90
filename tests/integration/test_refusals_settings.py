"""A wrong name or value ends a program with exit code 2 and one line that names it and the cure."""

import pytest
from harness.refusal import ENDS_WITHIN_S, EVERYBODY, PASSWORD, SERVICES

pytestmark = pytest.mark.timeout(ENDS_WITHIN_S, func_only=True)


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_name_that_nobody_reads(refusal, who):
    said = refusal(who, EVENLOAD_GIRD="default")

    assert said.endswith("EVENLOAD_GIRD is no setting of Evenload: did you mean EVENLOAD_GRID?")


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_name_of_ours_in_small_letters(refusal, who):
    said = refusal(who, evenload_ledger_url="sqlite:////srv/other.sqlite")

    assert said.endswith("evenload_ledger_url is no setting of Evenload: did you mean EVENLOAD_LEDGER_URL?")


@pytest.mark.parametrize(("who", "name"), [("up", "EVENLOAD_DATA_DIR"), ("substations", "EVENLOAD_SUBSTATION_WITNESS")])
def test_a_path_that_only_a_shell_would_change(refusal, tmp_path, monkeypatch, who, name):
    monkeypatch.chdir(tmp_path)

    assert f"{name}: no shell reads it, so '~' would become a part of a name: write" in refusal(who, **{name: "~/data"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_name_of_two_lines_is_told_in_one(refusal, who):
    assert r"EVENLOAD_LOG\nLEVEL is no setting" in refusal(who, **{"EVENLOAD_LOG\nLEVEL": "DEBUG"})


@pytest.mark.parametrize(
    ("who", "wrong", "right"),
    [
        ("gateway", "EVENLOAD_GATEWAY_PROT", "EVENLOAD_GATEWAY_PORT"),
        ("balancer", "EVENLOAD_BALANCER_POLCY", "EVENLOAD_BALANCER_POLICY"),
        ("substations", "EVENLOAD_SUBSTATION_TICKS", "EVENLOAD_SUBSTATION_TICK_S"),
        ("up", "EVENLOAD_FIRST_RUHS", "EVENLOAD_FIRST_RUSH"),
    ],
)
def test_a_misspelt_name_of_a_programs_own(refusal, who, wrong, right):
    assert f"{wrong} is no setting of Evenload: did you mean {right}?" in refusal(who, **{wrong: "1"})


@pytest.mark.parametrize("who", SERVICES)
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read (No such file or directory): name a file that this user may read"),
        ("\n", "is empty: write the value into it, or unset EVENLOAD_AMQP_URL_FILE"),
        (PASSWORD, "EVENLOAD_AMQP_URL_FILE: an address like amqp://user:password@127.0.0.1:5672/evenload is needed"),
    ],
)
def test_a_file_that_holds_no_setting(refusal, tmp_path, who, content, told):
    path = tmp_path / "amqp_url"
    if content is not None:
        path.write_text(content)

    assert told in refusal(who, EVENLOAD_AMQP_URL_FILE=str(path))


@pytest.mark.parametrize("who", EVERYBODY)
def test_the_name_of_a_file_that_nobody_reads(refusal, who):
    said = refusal(who, EVENLOAD_AMQB_URL_FILE="/dev/null")

    assert said.endswith("EVENLOAD_AMQB_URL_FILE is no setting of Evenload: did you mean EVENLOAD_AMQP_URL_FILE?")


@pytest.mark.parametrize("port", ["0", "70000"])
@pytest.mark.parametrize(
    ("who", "name"),
    [
        *((one, "EVENLOAD_ADMIN_PORT") for one in SERVICES),
        *((one, "EVENLOAD_GATEWAY_PORT") for one in ("gateway", "up")),
    ],
)
def test_what_is_no_port(refusal, who, name, port):
    assert f"{name}: input should be " in refusal(who, **{name: port})


@pytest.mark.parametrize(
    ("who", "settings", "told"),
    [
        ("balancer", {"EVENLOAD_SPEED": "fast"}, "EVENLOAD_SPEED: input should be a valid number"),
        ("gateway", {"EVENLOAD_SPEED": "-1"}, "EVENLOAD_SPEED: input should be greater than 0"),
        ("balancer", {"EVENLOAD_BALANCER_POLICY": "best"}, "EVENLOAD_BALANCER_POLICY: input should be 'least-utili"),
        ("substations", {"EVENLOAD_SUBSTATION_IDS": "nort"}, "EVENLOAD_SUBSTATION_IDS: 'nort' is not in grid area"),
        ("gateway", {"EVENLOAD_ADMIN_HOST": "192.0.2.1"}, "EVENLOAD_ADMIN_HOST: '192.0.2.1' is not this machine"),
        ("gateway", {"EVENLOAD_ADMIN_HOST": "no..host"}, "EVENLOAD_ADMIN_HOST: 'no..host' is not this machine"),
    ],
)
def test_a_value_that_cannot_be_meant(refusal, who, settings, told):
    assert told in refusal(who, **settings)


def test_a_beat_that_is_too_slow_for_the_lease(refusal):
    said = refusal("substations", EVENLOAD_LEASE_S="8", EVENLOAD_SUBSTATION_HEARTBEAT_S="4")

    assert "EVENLOAD_SUBSTATION_HEARTBEAT_S: 4 s is not below half of the lease" in said
