"""What the doctor says of a stack that is well, of one that is ill, and of none."""

import base64
import fcntl
import os
import sqlite3
import urllib.request

import psutil
from harness.commands import seen, told
from harness.fake_gateway import fake_gateway
from harness.stack import Stack, until

from services.broker import topology
from services.ledger.sqlite_files import lock_path
from services.local.ports import free_ports


def doctor(stack: Stack, code: int, **more: str) -> dict[str, dict]:
    answer = told(stack, "doctor", code=code, **more)
    assert answer["verdict"] in [("ok", "note"), ("problem",), ("misconfigured",)][code]
    return {one["check"]: one for one in answer["checks"] if one["finding"] not in ("ok", "note")}


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
    assert checks["services"]["said"] == "substation-north: it does not answer within 3 s"
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


def test_the_doctor_finds_a_healthy_stack_well(stack):
    until(lambda: told_fresh(stack), "all substations fresh")
    until(lambda: told(stack, "doctor", code=0), "a healthy stack")
    terminal = seen(stack, "doctor")
    assert terminal.wait() == 0
    for word in ("✓ python", "✓ broker", "✓ gateway", "✓ balancer", "all of 4 answer", "all well"):
        assert word in terminal.text


def test_what_the_doctor_finds_missing_at_the_stacks_own_broker_mend_makes_without_being_told_where(stack):
    url, user, password = stack.console()
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    gone = urllib.request.Request(  # noqa: S310
        f"{url}/api/policies/{topology.VHOST}/charge-work", method="DELETE", headers={"Authorization": f"Basic {login}"}
    )
    urllib.request.urlopen(gone, timeout=30).close()  # noqa: S310

    broker = doctor(stack, 1)["broker"]
    assert (broker["said"], broker["cure"]) == ("policy 'charge-work' is missing", topology.MEND)
    answer = told(stack, "mend")
    assert [one["name"] for one in answer["items"] if one["outcome"] == "made"] == ["charge-work"]
    assert {one["name"] for one in answer["items"] if one["kind"] == "rights"} == set(topology.ROLES)
    until(lambda: told(stack, "doctor", code=0), "a healthy stack again")


def test_the_doctor_names_a_ledger_lock_that_is_held(stack):
    gate = os.open(lock_path(stack.data / "ledger.sqlite"), os.O_RDWR)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        said = doctor(stack, 1)["ledger lock"]
    finally:
        os.close(gate)
    assert f"pid {os.getpid()} " in said["said"]


def test_the_doctor_finds_a_speed_that_is_not_the_ledgers(stack):
    assert doctor(stack, 2, EVENLOAD_SPEED="60")["speed"]["cure"].startswith(f"set EVENLOAD_SPEED={stack.speed}")


def test_the_doctor_finds_a_port_that_is_not_the_stacks(stack):
    until(lambda: told(stack, "doctor", code=0), "a healthy stack")
    checks = doctor(stack, 1, EVENLOAD_GATEWAY_PORT=str(free_ports(1)[0]))
    assert checks["port"]["cure"].startswith(f"set EVENLOAD_GATEWAY_PORT={stack.port}")


def test_without_a_stack_the_doctor_names_what_would_keep_one_from_starting_and_changes_nothing(stack, tmp_path):
    nowhere = {"EVENLOAD_DATA_DIR": str(tmp_path / "data"), "EVENLOAD_GATEWAY_PORT": str(free_ports(1)[0])}
    assert doctor(stack, 0, **nowhere) == {}
    assert not (tmp_path / "data").exists()

    (tmp_path / "data").mkdir()
    copy = tmp_path / "data" / "ledger.sqlite"
    with sqlite3.connect(f"file:{stack.data / 'ledger.sqlite'}?mode=ro", uri=True) as ledger:
        with sqlite3.connect(copy) as newer:
            ledger.backup(newer)
            newer.execute("UPDATE meta SET value = '99' WHERE name = 'schema_version'")
        newer.close()
    ledger.close()
    before = sorted((one.name, one.stat().st_mtime_ns) for one in copy.parent.iterdir())
    with fake_gateway() as somebody:
        taken = nowhere | {"EVENLOAD_GATEWAY_PORT": somebody.url.rpartition(":")[2]}
        found = doctor(stack, 2, **taken, EVENLOAD_GRID="nowhere.toml")
    assert f"pid {os.getpid()} " in found["port"]["said"]
    assert "99, newer" in found["ledger"]["said"]
    assert "nowhere.toml" in found["grid file"]["said"]
    assert sorted((one.name, one.stat().st_mtime_ns) for one in copy.parent.iterdir()) == before

    misspelt = doctor(stack, 2, **nowhere, EVENLOAD_GIRD="mixed")["settings"]
    assert "EVENLOAD_GRID" in misspelt["cure"]
