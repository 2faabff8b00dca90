"""Every command on a live stack, in a terminal and for programs; and what the doctor says of a stack that is ill."""

import base64
import fcntl
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import urllib.request

import psutil
import pytest
from harness.stack import ROOT, Stack, started, until
from harness.terminal import Terminal

from services.ledger.sqlite import lock_path
from services.local.stack import free_ports

EVENLOAD = str(ROOT / ".venv/bin/evenload")
SPEED = "600"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    data = tmp_path_factory.mktemp("cli") / "data"
    with started(data, free_ports(1)[0], EVENLOAD_SPEED=SPEED, EVENLOAD_BALANCER_SCRAPE_INTERVAL_S="0.5") as one:
        yield one.until_up()


def environment(stack: Stack, **more: str) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")},
        "EVENLOAD_DATA_DIR": str(stack.data),
        "EVENLOAD_GATEWAY_PORT": str(stack.port),
        "EVENLOAD_SPEED": SPEED,
        **more,
    }


def seen(stack: Stack, *arguments: str, columns: int = 80, lines: int = 24) -> Terminal:
    return Terminal([EVENLOAD, *arguments], environment(stack), columns, lines)


def told(stack: Stack, *arguments: str, code: int = 0, **more: str) -> dict:
    """What a command tells a program: one JSON object on one line, and its exit code."""
    done = subprocess.run(
        [EVENLOAD, *arguments, "--json"], cwd=ROOT, env=environment(stack, **more), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == code, (done.stdout, done.stderr)
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_a_request_is_submitted_followed_and_explained(stack):
    terminal = seen(stack, "submit", "--vehicle-id", "EV-PTY", "--energy-kwh", "5", "--wait")
    assert terminal.wait() == 0
    for word in ("EV-PTY", "accepted", "look at", "completed", "5 of 5 kWh", "EnergyLimitReached", "lowest score"):
        assert word in terminal.text
    request_id = terminal.until_said(r"evenload status (\S+)").group(1)

    page = seen(stack, "status", request_id)
    assert page.wait() == 0
    for word in (request_id, "history", "submitted", "dispatched", "claimed", "decision", "▸", "candidate", "score"):
        assert word in page.text
    assert told(stack, "status", request_id) == stack.get(f"/charge-requests/{request_id}")[1]

    sent = told(stack, "submit", "--key", "once")
    assert (
        told(stack, "submit", "--key", "once", "--vehicle-id", sent["vehicle_id"])["request_id"] == sent["request_id"]
    )


def test_a_rush_is_told_to_people_and_to_programs(stack):
    terminal = seen(stack, "rush", "--requests", "20", "--over", "1", columns=120)
    assert terminal.wait() == 0
    for word in ("sent", "claimed", "20/20", "demand ÷ limit", "north"):
        assert word in terminal.text

    answer = told(stack, "rush", "--requests", "20", "--over", "1", "--until", "ended")
    assert (answer["requests"], answer["accepted"], answer["ended"], answer["refused"]) == (20, 20, 20, {})
    assert sum(answer["substations"].values()) == 20
    assert answer["verdict"]


def test_the_counts_and_the_newest_are_shown_and_the_gateways_counts_come_true(stack):
    request_id = stack.submit(1, energy_kwh=1)[0]
    stack.until_ended([request_id])
    page = seen(stack, "status", "--limit", "5")
    assert page.wait() == 0
    for word in ("accepted", "completed", "ago", request_id):
        assert word in page.text

    def all_counted() -> bool:
        listed = [told(stack, "status", "--limit", "500")["items"], told(stack, "status")["requests"]]
        return len(listed[0]) == sum(listed[1].values())

    until(all_counted, "counts that agree with the list")
    assert told(stack, "status", "--state", "failed", "--substation", "north")["items"] == []


def test_the_load_table_is_shown_and_is_that_of_the_gateway(stack):
    table = seen(stack, "substations", columns=110)
    assert table.wait() == 0
    for word in ("north", "east", "south", "west", "/40", "of 304 kW", "told by balancer"):
        assert word in table.text
    assert told(stack, "substations").keys() == stack.get("/substations")[1].keys()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40)])
def test_top_shows_a_rush_live_until_ctrl_c(stack, columns, lines):
    terminal = seen(stack, "top", columns=columns, lines=lines)
    terminal.until_said("evenload top")
    (request_id,) = stack.submit(1, energy_kwh=20, max_power_kw=22)
    terminal.until_said(f"{request_id[:8]}.*charging")
    terminal.until_said(f"{request_id[:8]}.*→ completed")
    for word in ("north", "━", "/40", "accepted/s", "ended/s", "cancelled"):
        assert word in terminal.text
    terminal.press_ctrl_c()
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.text


def test_top_tells_programs_a_line_a_second_or_once(stack):
    once = told(stack, "top", "--once")
    assert {one["substation"] for one in once["substations"]} == {"north", "east", "south", "west"}
    with subprocess.Popen(
        [EVENLOAD, "top", "--json"], cwd=ROOT, env=environment(stack), stdout=subprocess.PIPE, text=True
    ) as watching:
        first = json.loads(watching.stdout.readline())
        (request_id,) = stack.submit(1, energy_kwh=1)
        changes = []
        while not any(one["request_id"] == request_id and one["status"] == "completed" for one in changes):
            line = json.loads(watching.stdout.readline())
            assert line.keys() == first.keys() == once.keys()
            changes += line["changes"]
        watching.send_signal(2)
        assert watching.wait(20) == 0


@pytest.mark.parametrize("target", ["gateway", "balancer", "north", "rabbitmq"])
def test_a_killed_process_is_back_and_requests_go_on(stack, target):
    answer = told(stack, "break", target)
    assert answer["action"] == "kill"
    assert answer["target"] == ("substation-north" if target == "north" else target)
    assert answer["new_pid"] not in (None, answer["pid"])
    until(lambda: told(stack, "substations")["items"] if target != "gateway" else stack.get("/substations"), "a table")
    stack.until_ended(stack.submit(4, energy_kwh=1))


def test_a_frozen_substation_is_silent_and_runs_on_whatever_ends_the_freeze(stack):
    until(lambda: told_fresh(stack), "all substations fresh")
    terminal = seen(stack, "break", "north", "--freeze", "10m", columns=120)
    terminal.until_said("froze substation-north")
    victim = stack.service("substation-north")
    until(lambda: victim.status() == psutil.STATUS_STOPPED, "a frozen process")
    until(lambda: not told_fresh(stack), "a stale reading")
    checks = doctor(stack, 1)
    assert "north" in checks["substations"]["said"]
    assert f"kill -CONT {victim.pid}" in checks["processes"]["cure"]
    terminal.press_ctrl_c()
    assert terminal.wait() == 130
    assert "runs again" in terminal.text
    until(lambda: victim.status() != psutil.STATUS_STOPPED, "a running process")

    answer = told(stack, "break", "south", "--freeze", "300ms")
    assert (answer["action"], answer["frozen_s"] >= 0.3) == ("freeze", True)
    until(lambda: told_fresh(stack), "all substations fresh again")


def told_fresh(stack: Stack) -> bool:
    items = stack.get("/substations")[1]["items"]
    return len(items) == 4 and all(one["fresh"] for one in items)


def test_poison_is_quarantined_and_listed_and_stays(stack):
    assert told(stack, "dead") == {"queue": "charge.graveyard", "messages": 0, "items": []}
    url, user, password = stack.console()
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310
        f"{url}/api/exchanges/evenload/charge.requests/publish",
        data=json.dumps(
            {"properties": {}, "routing_key": "", "payload": "\x1b[2Jpoison", "payload_encoding": "string"}
        ).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        assert json.loads(response.read()) == {"routed": True}

    [item] = until(lambda: told(stack, "dead")["items"], "the message in the graveyard")

    assert (item["queue"], item["body"]) == ("charge.intake", r"\x1b[2Jpoison")
    terminal = seen(stack, "dead", columns=120)
    assert terminal.wait() == 0
    for word in ("charge.intake", r"\x1b[2Jpoison", "1 in charge.graveyard"):
        assert word in terminal.text


def doctor(stack: Stack, code: int, **more: str) -> dict[str, dict]:
    answer = told(stack, "doctor", code=code, **more)
    assert answer["verdict"] in [("ok", "note"), ("problem",), ("misconfigured",)][code]
    return {one["check"]: one for one in answer["checks"] if one["finding"] not in ("ok", "note")}


def test_the_doctor_finds_a_healthy_stack_well(stack):
    until(lambda: told_fresh(stack), "all substations fresh")
    until(lambda: told(stack, "doctor", code=0), "a healthy stack")
    terminal = seen(stack, "doctor")
    assert terminal.wait() == 0
    for word in ("✓ python", "✓ broker", "✓ gateway", "✓ balancer", "all of 4 answer", "all well"):
        assert word in terminal.text


def test_the_doctor_names_a_ledger_lock_that_is_held(stack):
    gate = os.open(lock_path(stack.data / "ledger.sqlite"), os.O_RDWR)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        said = doctor(stack, 1)["ledger lock"]
    finally:
        os.close(gate)
    assert f"pid {os.getpid()} " in said["said"]


def test_the_doctor_finds_a_speed_that_is_not_the_ledgers(stack):
    assert doctor(stack, 2, EVENLOAD_SPEED="60")["speed"]["cure"].startswith(f"set EVENLOAD_SPEED={SPEED}")


def test_the_doctor_finds_a_port_that_is_not_the_stacks(stack):
    until(lambda: told(stack, "doctor", code=0), "a healthy stack")
    checks = doctor(stack, 1, EVENLOAD_GATEWAY_PORT=str(free_ports(1)[0]))
    assert checks["port"]["cure"].startswith(f"set EVENLOAD_GATEWAY_PORT={stack.port}")


def test_without_a_stack_the_doctor_names_what_would_keep_one_from_starting_and_changes_nothing(stack, tmp_path):
    nowhere = {"EVENLOAD_DATA_DIR": str(tmp_path / "data"), "EVENLOAD_GATEWAY_PORT": str(free_ports(1)[0])}
    assert doctor(stack, 0, **nowhere) == {}
    assert not (tmp_path / "data").exists()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(nowhere["EVENLOAD_GATEWAY_PORT"])))
        taken.listen()
        port = doctor(stack, 2, **nowhere)["port"]
    assert f"pid {os.getpid()} " in port["said"]

    (tmp_path / "data").mkdir()
    copy = tmp_path / "data" / "ledger.sqlite"
    with sqlite3.connect(f"file:{stack.data / 'ledger.sqlite'}?mode=ro", uri=True) as ledger:
        with sqlite3.connect(copy) as newer:
            ledger.backup(newer)
            newer.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
        newer.close()
    ledger.close()
    before = sorted((one.name, one.stat().st_mtime_ns) for one in copy.parent.iterdir())
    assert "99, newer" in doctor(stack, 2, **nowhere)["ledger"]["said"]
    assert sorted((one.name, one.stat().st_mtime_ns) for one in copy.parent.iterdir()) == before
    shutil.rmtree(copy.parent)

    misspelt = doctor(stack, 2, **nowhere, EVENLOAD_GIRD="mixed")["settings"]
    assert "EVENLOAD_GRID" in misspelt["cure"]
    assert "nowhere.toml" in doctor(stack, 2, **nowhere, EVENLOAD_GRID="nowhere.toml")["grid file"]["said"]


def test_up_tells_programs_where_everything_is_in_one_line(tmp_path, port, vhost):
    data = tmp_path / "data"
    log = tmp_path / "stderr"
    with log.open("w") as errors:
        one = Stack(data, port, {"EVENLOAD_AMQP_URL": vhost.amqp_url("operator")}, ["true"])
        one.wait()
        process = subprocess.Popen(
            [EVENLOAD, "up", "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment(one, EVENLOAD_AMQP_URL=vhost.amqp_url("operator"), EVENLOAD_FIRST_RUSH="0",
                            EVENLOAD_PROMETHEUS="0"),
        )  # fmt: skip
    try:
        running = json.loads(process.stdout.readline())
        assert running["gateway_url"] == one.url
        assert running["supervisor_pid"] == process.pid
        assert running["prometheus_url"] is None
        assert {"gateway", "balancer", "substation-north"} <= running["pids"].keys()
        assert one.get("/substations")[0] == 200
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[0]
    assert (process.returncode, rest) == (0, "")
    assert "everything is down" in log.read_text()
