"""A wrong setting ends a process with exit code 2 and one line that names it and the cure."""

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from harness.broker import Vhost, api
from harness.ledger import opened

from services.broker import topology

ENDS_WITHIN_S = 60
SERVICES = ["gateway", "balancer", "substations"]
EVERYBODY = [*SERVICES, "up"]
COMMANDS = {one: [sys.executable, "-P", "-m", one] for one in SERVICES} | {
    "up": [sys.executable, "-P", "-m", "services.cli.main", "up"]
}
PASSWORD = "do-not-print-me"
NO_BROKER = f"amqp://someone:{PASSWORD}@127.0.0.1:1/evenload"


@pytest.fixture
def refusal(tmp_path, port):
    """Starts a process with wrong settings and returns the one line that it says; all else about it is checked."""

    def start(who: str, **settings: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")}
        environment |= {
            "EVENLOAD_AMQP_URL": NO_BROKER,
            "EVENLOAD_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
            # Of a whole stack the one that refuses must speak before the others have given up on the broker.
            "EVENLOAD_STARTUP_TIMEOUT_S": "30" if who == "up" else "0.5",
            "EVENLOAD_DATA_DIR": str(tmp_path / "data"),
            "EVENLOAD_GATEWAY_PORT": str(port),
            "EVENLOAD_PROMETHEUS": "0",
        }
        ended = subprocess.run(
            COMMANDS[who],
            env=environment | settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ENDS_WITHIN_S,
            check=False,
        )
        said = ended.stderr.splitlines()
        assert ended.returncode == 2, (ended.returncode, said, ended.stdout)
        assert len(said) == 1, said
        assert said[0].startswith("evenload: " if who == "up" else f"{who}: ")
        assert "Traceback" not in ended.stdout
        assert PASSWORD not in ended.stdout + ended.stderr
        return said[0]

    return start


@pytest.fixture
def ledger_at(tmp_path):
    """Addresses of ledgers that cannot be used."""

    def address(fault: str) -> str:
        where = tmp_path / f"{fault}.sqlite"
        match fault:
            case "unwritable":
                (tmp_path / "file").write_text("")
                where = tmp_path / "file" / "ledger.sqlite"
            case "folder":
                where.mkdir()
            case "diary":
                where.write_text("Dear diary, this is no database, but as long as the header of one. " * 9)
            case "foreign":
                with contextlib.closing(sqlite3.connect(where)) as database, database:
                    database.execute("CREATE TABLE accounts (id INTEGER)")
        return f"sqlite:///{where}"

    return address


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_name_that_nobody_reads(refusal, who):
    said = refusal(who, EVENLOAD_GIRD="default")

    assert said.endswith("EVENLOAD_GIRD is no setting of Evenload: did you mean EVENLOAD_GRID?")


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_name_of_two_lines_is_told_in_one(refusal, who):
    assert r"EVENLOAD_LOG\nLEVEL is no setting" in refusal(who, **{"EVENLOAD_LOG\nLEVEL": "DEBUG"})


@pytest.mark.parametrize(
    ("who", "wrong", "right"),
    [
        ("gateway", "EVENLOAD_GATEWAY_PROT", "EVENLOAD_GATEWAY_PORT"),
        ("balancer", "EVENLOAD_BALANCER_POLCY", "EVENLOAD_BALANCER_POLICY"),
        ("substations", "EVENLOAD_SUBSTATION_TICKS", "EVENLOAD_SUBSTATION_TICK_S"),
        ("up", "EVENLOAD_BALANCER_POLCY", "EVENLOAD_BALANCER_POLICY"),
    ],
)
def test_a_misspelt_name_of_a_services_own(refusal, who, wrong, right):
    assert f"{wrong} is no setting of Evenload: did you mean {right}?" in refusal(who, **{wrong: "1"})


@pytest.mark.parametrize("who", EVERYBODY)
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
def test_a_ledgers_file_that_holds_something_else(refusal, tmp_path, who):
    (tmp_path / "ledger_url").write_text(PASSWORD)

    said = refusal(who, EVENLOAD_LEDGER_URL_FILE=str(tmp_path / "ledger_url"))

    assert "EVENLOAD_LEDGER_URL: its value is no ledger this version knows" in said


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
        ("up", {"EVENLOAD_SPEED": "-1"}, "EVENLOAD_SPEED: input should be greater than 0"),
        ("up", {"EVENLOAD_BALANCER_POLICY": "best"}, "EVENLOAD_BALANCER_POLICY: input should be 'least-utilisation'"),
        ("substations", {"EVENLOAD_SUBSTATION_IDS": "nort"}, "EVENLOAD_SUBSTATION_IDS: 'nort' is not in grid area"),
        ("gateway", {"EVENLOAD_ADMIN_HOST": "192.0.2.1"}, "EVENLOAD_ADMIN_HOST: '192.0.2.1' is not this machine"),
        ("gateway", {"EVENLOAD_ADMIN_HOST": "no..host"}, "EVENLOAD_ADMIN_HOST: 'no..host' is not this machine"),
        ("up", {"EVENLOAD_ADMIN_HOST": "0.0.0.0"}, "EVENLOAD_ADMIN_HOST: the local stack serves on 127.0.0.1 only"),
        ("up", {"EVENLOAD_PROMETHEUS": "/nowhere/it"}, "EVENLOAD_PROMETHEUS: '/nowhere/it' is no program: install"),
        ("up", {"EVENLOAD_DATA_DIR": "/dev/null"}, "EVENLOAD_DATA_DIR: /dev/null cannot be written"),
    ],
)
def test_a_value_that_cannot_be_meant(refusal, who, settings, told):
    assert told in refusal(who, **settings)


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


@pytest.mark.parametrize("who", ["substations", "up"])
def test_a_floor_under_which_no_session_could_run(refusal, who):
    said = refusal(who, EVENLOAD_SUBSTATION_FLOOR_KW="500")

    # Of a whole stack any of the four may be the first to refuse.
    assert re.search(
        "EVENLOAD_SUBSTATION_FLOOR_KW: 500 kW is above the limit of '(north|east|south|west)', 304 kW", said
    )
    assert "lower it" in said


@pytest.mark.parametrize("who", EVERYBODY)
def test_a_broker_that_does_not_answer(refusal, who):
    said = refusal(who, EVENLOAD_STARTUP_TIMEOUT_S="0.5")

    assert "EVENLOAD_AMQP_URL: no broker answers at amqp://someone:***@127.0.0.1:1/evenload" in said
    assert "start one there, or correct address, user and vhost" in said


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1", "amqp://", "amqp://someone:secret@a..b/evenload", "127.0.0.1:5672"]
)
def test_what_is_no_address_of_a_broker(refusal, address):
    assert "EVENLOAD_AMQP_URL: an address like amqp://user:password@" in refusal("balancer", EVENLOAD_AMQP_URL=address)


@pytest.mark.parametrize("login", ["", "guest@", "guest:guest@", "someone:@", "someone:changeme@"])
def test_a_password_that_everybody_guesses_for_a_broker_elsewhere(refusal, login):
    said = refusal("gateway", EVENLOAD_AMQP_URL=f"amqp://{login}broker.example/evenload")

    assert "EVENLOAD_AMQP_URL: the password for broker.example is empty or one that everybody guesses" in said


@pytest.mark.parametrize("who", SERVICES)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("unwritable", "cannot be used (File exists): name a file where this user may write"),
        ("folder", "is no usable ledger"),
        ("diary", "is no usable ledger (file is not a database): name another file, or a new one"),
        ("foreign", "is a database, but not Evenload's ledger: name another file"),
    ],
)
def test_a_ledger_that_cannot_be_used_and_no_broker_either(refusal, ledger_at, who, fault, told):
    address = ledger_at(fault)

    said = refusal(who, EVENLOAD_LEDGER_URL=address)

    assert f"EVENLOAD_LEDGER_URL: {address.removeprefix('sqlite:///')} " in said
    assert told in said
    assert "; and EVENLOAD_AMQP_URL: no broker answers at amqp://someone:***@127.0.0.1:1/evenload" in said


def test_a_ledger_that_cannot_be_used_and_a_broker_that_refuses(refusal, broker, ledger_at):
    wrong = Vhost(broker, "nowhere").amqp_url("balancer")

    said = refusal("balancer", EVENLOAD_LEDGER_URL=ledger_at("diary"), EVENLOAD_AMQP_URL=wrong)

    assert "is no usable ledger" in said
    assert "(it refuses to open the vhost" in said


def test_a_ledger_that_cannot_be_used_and_a_broker_that_is_well(refusal, vhost, ledger_at):
    said = refusal("balancer", EVENLOAD_LEDGER_URL=ledger_at("diary"), EVENLOAD_AMQP_URL=vhost.amqp_url("balancer"))

    assert "is no usable ledger" in said
    assert "EVENLOAD_AMQP_URL" not in said


@pytest.mark.parametrize("address", ["sqlite:///", "sqlite:////", "sqlite://ledger", "oracle://host/x"])
def test_what_is_no_address_of_a_ledger(refusal, address):
    said = refusal("gateway", EVENLOAD_LEDGER_URL=address)

    assert "EVENLOAD_LEDGER_URL: " in said
    assert "give sqlite:///path/to/ledger.sqlite" in said


@pytest.mark.parametrize("who", SERVICES)
def test_a_postgresql_that_refuses(refusal, postgres, who):
    said = refusal(who, EVENLOAD_LEDGER_URL=postgres.url(password=PASSWORD), EVENLOAD_LEDGER_SHARED="1")

    assert f"EVENLOAD_LEDGER_URL: 127.0.0.1:{postgres.port}/postgres refuses (FATAL:  password" in said
    assert "correct user, password and database" in said


def test_a_postgresql_that_is_not_there(refusal, port):
    said = refusal("gateway", EVENLOAD_LEDGER_URL=f"postgresql://someone:{PASSWORD}@127.0.0.1:{port}/evenload")

    assert f"EVENLOAD_LEDGER_URL: 127.0.0.1:{port}/evenload does not answer" in said
    assert "start PostgreSQL there, or correct host and port" in said


@pytest.mark.parametrize("who", EVERYBODY)
async def test_a_ledger_of_a_newer_version(refusal, tmp_path, who):
    where = tmp_path / "newer.sqlite"
    async with opened(where):
        pass
    with contextlib.closing(sqlite3.connect(where)) as database, database:
        database.execute("UPDATE meta SET value = '999' WHERE name = 'schema_version'")

    said = refusal(who, EVENLOAD_LEDGER_URL=f"sqlite:///{where}")

    assert f"EVENLOAD_LEDGER_URL: {where} has schema version 999" in said
    assert "use the Evenload that wrote it, or name another file" in said


@pytest.mark.parametrize("who", SERVICES)
async def test_a_ledger_whose_sessions_run_at_another_speed(refusal, tmp_path, who):
    async with opened(tmp_path / "ledger.sqlite", speed=60):
        pass

    said = refusal(who, EVENLOAD_SPEED="61")

    assert "EVENLOAD_SPEED is 61, but this ledger is used with 60: set EVENLOAD_SPEED=60" in said


def test_a_sqlite_file_for_several_hosts(refusal):
    assert "and unset EVENLOAD_LEDGER_SHARED" in refusal("balancer", EVENLOAD_LEDGER_SHARED="1")


@pytest.mark.parametrize("who", SERVICES)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("password", "(ACCESS_REFUSED"),
        ("vhost", "(it refuses to open the vhost"),
        ("topology", "is not set up for Evenload (NOT_FOUND - no exchange 'charge.requests'"),
    ],
)
def test_a_broker_that_answers_and_refuses(refusal, broker, who, wrong, told):
    role = who.removesuffix("s")
    name = f"t{uuid.uuid4().hex[:8]}"
    right = broker.passwords[role]
    api(broker, "PUT", f"vhosts/{name}")
    try:
        api(broker, "PUT", f"permissions/{name}/{role}", {"configure": ".*", "write": ".*", "read": ".*"})
        address = Vhost(broker, name if wrong != "vhost" else f"{name}-not").amqp_url(role)
        said = refusal(who, EVENLOAD_AMQP_URL=address.replace(right, PASSWORD) if wrong == "password" else address)
    finally:
        api(broker, "DELETE", f"vhosts/{name}")

    assert "EVENLOAD_AMQP_URL: " in said
    assert told in said
    assert right not in said


@pytest.mark.parametrize(
    ("who", "right", "pattern", "lacking"),
    [
        ("gateway", "write", r"^(charge\.events|amq_.*)$", "write right on exchange 'charge.requests'"),
        ("gateway", "read", r"^amq_.*$", "read right on exchange 'charge.events'"),
        ("gateway", "configure", "^$", "configure right on queue 'amq_"),
        ("gateway", "write", r"^charge\.(requests|events)$", "write right on queue 'amq_"),
        ("gateway", "read", r"^charge\.events$", "read right on queue 'amq_"),
        ("balancer", "write", r"^charge\.(events|dead)$", "write right on exchange 'charge.assignments'"),
        ("balancer", "write", r"^charge\.(assignments|dead)$", "right on exchange 'charge.events'"),
        ("balancer", "write", r"^charge\.(assignments|events)$", "write right on exchange 'charge.dead'"),
        ("balancer", "read", r"^charge\.events$", "read right on queue 'charge.intake'"),
        ("substations", "write", r"^charge\.substation\..*$", "write right on exchange 'charge.dead'"),
        ("substations", "configure", "^$", "configure right on queue 'charge.substation."),
        ("substations", "write", r"^charge\.dead$", "write right on queue 'charge.substation."),
        ("substations", "read", r"^charge\.substation\..*$", "read right on exchange 'charge.assignments'"),
        ("substations", "read", r"^charge\.assignments$", "read right on queue 'charge.substation."),
    ],
)
def test_a_broker_user_with_too_few_rights(refusal, vhost, who, right, pattern, lacking):
    role = who.removesuffix("s")
    rights = topology.ROLES[role]
    all_of_them = {"configure": rights.configure, "write": rights.write, "read": rights.read}
    api(vhost.broker, "PUT", f"permissions/{vhost.name}/{role}", all_of_them | {right: pattern})

    said = refusal(who, EVENLOAD_AMQP_URL=vhost.amqp_url(role))

    assert f"EVENLOAD_AMQP_URL: user '{role}' lacks the " in said
    assert lacking in said
    assert f"in vhost '{vhost.name}': grant it with `rabbitmqctl set_permissions`" in said


@pytest.mark.parametrize("who", SERVICES)
def test_a_full_disk_under_the_output_changes_no_exit_code(who):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(COMMANDS[who], env=environment, stdout=full, stderr=full, timeout=60, check=False)

    assert ended.returncode == 2
