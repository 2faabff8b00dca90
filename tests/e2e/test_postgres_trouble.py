"""A stack on PostgreSQL: the ledger away from all, and from one process alone; numbers are the failure model's."""

import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.beside import ISLAND
from harness.postgres import fresh_database
from harness.stack import Stack, started, until
from harness.tcp_proxy import TcpProxy
from harness.witnessed import assert_nothing_doubled, pieces

from services.ledger.states import Reason
from services.local.stack import free_ports

LEASE_S = 5


@dataclass
class Trouble:
    stack: Stack
    folder: Path
    to_all: TcpProxy
    """Between the ledger and the whole stack."""
    to_island: TcpProxy
    """Between the ledger and the process of the island alone."""
    island: subprocess.Popen

    def metric(self, name: str) -> float:
        url = re.findall(r'"admin_url": "(\S+?)"', (self.folder / "island.log").read_text())[-1]
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:  # noqa: S310
            found = re.search(rf"^evenload_substation_{name}{{.*}} (\S+)$", response.read().decode(), re.MULTILINE)
        return float(found.group(1)) if found else 0.0


@pytest.fixture(scope="module")
def trouble(postgres, tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres-trouble")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh_database(postgres))
        to_all, to_island = (stack.enter_context(TcpProxy(postgres.port)) for _ in range(2))
        witness = {"EVENLOAD_SUBSTATION_WITNESS": str(folder / "witness")}
        settings = {"EVENLOAD_LEDGER_URL": url.replace(f":{postgres.port}/", f":{to_all.port}/"), **witness}
        running = stack.enter_context(started(folder / "data", free_ports(1)[0], **settings)).until_up()
        (folder / "island.toml").write_text(ISLAND)
        environment = {
            **os.environ,
            **running.service("substation-north").environ(),
            "EVENLOAD_LEDGER_URL": url.replace(f":{postgres.port}/", f":{to_island.port}/"),
            "EVENLOAD_GRID": str(folder / "island.toml"),
            "EVENLOAD_INSTANCE": "island",
            "EVENLOAD_SUBSTATION_IDS": "island",
        }
        environment.pop("EVENLOAD_ADMIN_PORT")
        with (folder / "island.log").open("wb") as log:
            island = subprocess.Popen([sys.executable, "-m", "substations"], env=environment, stdout=log, stderr=log)
        try:
            until(lambda: running.get("/substations/island")[1].get("fresh"), "the island in the load table")
            yield Trouble(running, folder, to_all, to_island, island)
        finally:
            island.terminate()
            assert island.wait(30) == 0


def charging(stack: Stack, ids: list[str]) -> bool:
    return all(stack.get(f"/charge-requests/{one}")[1]["status"] == "charging" for one in ids)


def reasons(stack: Stack, request_id: str) -> list[str]:
    return [line["reason"] for line in stack.get(f"/charge-requests/{request_id}")[1]["history"]]


def test_a_rush_on_postgresql_ends_evenly(trouble):
    ids = trouble.stack.submit(60, over_s=3, energy_kwh=2, max_power_kw=11)
    trouble.stack.until_ended(ids)


def test_failure_24_a_process_alone_cut_off_from_the_ledger_fences_itself_and_nothing_doubles(trouble):
    stack = trouble.stack
    ids = stack.submit(4, energy_kwh=5, max_power_kw=11, zone="island")
    until(lambda: charging(stack, ids), "claims at the island")

    trouble.to_island.stall()
    until(lambda: trouble.metric("fenced_total") >= 1, "the island's fence", 3 * LEASE_S)
    assert trouble.metric("power_watts") == 0
    until(lambda: all(Reason.SUBSTATION_LOST in reasons(stack, one) for one in ids), "the island's loss", 4 * LEASE_S)
    # Nobody else may take them: they are bound to the island's zone, and wait for it.
    assert {stack.get(f"/charge-requests/{one}")[1]["status"] for one in ids} == {"accepted"}
    trouble.to_island.heal()

    stack.until_ended(ids, 180)
    assert {stack.get(f"/charge-requests/{one}")[1]["status"] for one in ids} == {"completed"}
    assert_nothing_doubled(trouble.folder / "witness")


def test_failure_24_without_the_ledger_nothing_is_accepted_and_sessions_stand_still_until_it_is_back(trouble):
    stack = trouble.stack
    ids = stack.submit(12, energy_kwh=5, max_power_kw=11)
    until(lambda: charging(stack, ids), "12 claims")

    trouble.to_all.refuse()
    trouble.to_all.cut()
    _, problem = until(lambda: (answer := stack.post(vehicle_id="EV-1"))[0] == 503 and answer, "a refusal", 30)
    assert "the ledger did not confirm in time" in problem["detail"]
    until(lambda: still(trouble), "all sessions standing still", 3 * LEASE_S)
    trouble.to_all.heal()

    more = until(lambda: stack.post(vehicle_id="EV-2", energy_kwh=1)[1].get("request_id"), "an acceptance", 30)
    stack.until_ended([*ids, more], 180)
    assert_nothing_doubled(trouble.folder / "witness")
    # They went on where they stood: nobody lost its substation, because nobody could have renewed.
    assert not any(Reason.SUBSTATION_LOST in reasons(stack, one) for one in ids)


def still(trouble: Trouble) -> bool:
    """Whether no energy has been witnessed for more than a second."""
    ticks = [
        one["to_s"]
        for one in pieces(trouble.folder / "witness")
        if one["event"] == "energy" and one["substation"] != "island"
    ]

    return time.clock_gettime(time.CLOCK_BOOTTIME) - max(ticks) > 1
