"""A stack on PostgreSQL: the ledger away from all, and from one process alone; numbers are the failure model's."""

import contextlib
import re
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness.beside import Beside, beside, island
from harness.postgres import fresh_database
from harness.stack import Stack, started, until
from harness.tcp_proxy import TcpProxy
from harness.witnessed import assert_nothing_doubled, pieces

from services.ledger.states import Reason
from services.local.ports import free_ports

LEASE_S = 5


@dataclass
class Trouble:
    stack: Stack
    witness: Path
    to_all: TcpProxy
    """Between the ledger and the whole stack."""
    to_island: TcpProxy
    """Between the ledger and the process of the island alone."""
    island: Beside

    def metric(self, name: str) -> float:
        url = f"http://127.0.0.1:{self.island.admin_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as response:
            found = re.search(rf"^evenload_substation_{name}{{.*}} (\S+)$", response.read().decode(), re.MULTILINE)
        return float(found.group(1)) if found else 0.0


@pytest.fixture(scope="module")
def trouble(postgres, module_vhost, tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres-trouble")
    witness = folder / "witness"
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(fresh_database(postgres, with_ledger=True))
        to_all, to_island = (stack.enter_context(TcpProxy(postgres.port)) for _ in range(2))
        through = {proxy: url.replace(f":{postgres.port}/", f":{proxy.port}/") for proxy in (to_all, to_island)}
        settings = {
            "EVENLOAD_AMQP_URL": module_vhost.amqp_url("operator"),
            "EVENLOAD_LEDGER_URL": through[to_all],
            "EVENLOAD_SUBSTATION_WITNESS": str(witness),
        }
        running = stack.enter_context(started(folder / "data", free_ports(1)[0], **settings)).until_up()
        own = island(running, "island") | {"EVENLOAD_LEDGER_URL": through[to_island]}
        with beside(running, "substations", **own) as one:
            until(lambda: running.get("/substations/island")[1].get("fresh"), "the island in the load table")
            yield Trouble(running, witness, to_all, to_island, one)
            one.process.terminate()
            assert one.process.wait(30) == 0


def reasons(stack: Stack, request_id: str) -> list[str]:
    return [line["reason"] for line in stack.get(f"/charge-requests/{request_id}")[1]["history"]]


def test_a_rush_on_postgresql_ends_evenly(trouble):
    ids = trouble.stack.submit(60, over_s=3, energy_kwh=1, max_power_kw=11)
    trouble.stack.until_ended(ids)


def test_failure_24_a_process_alone_cut_off_from_the_ledger_fences_itself_and_nothing_doubles(trouble):
    stack = trouble.stack
    ids = stack.submit(4, energy_kwh=3, max_power_kw=11, zone="island")
    stack.until_charging(ids)

    trouble.to_island.stall()
    until(lambda: trouble.metric("fenced_total") >= 1, "the island's fence", 3 * LEASE_S)
    assert trouble.metric("power_watts") == 0
    until(lambda: all(Reason.SUBSTATION_LOST in reasons(stack, one) for one in ids), "the island's loss", 4 * LEASE_S)
    # Nobody else may take them: they are bound to the island's zone, and wait for it.
    assert {stack.get(f"/charge-requests/{one}")[1]["status"] for one in ids} == {"accepted"}
    trouble.to_island.heal()

    stack.until_ended(ids, 180)
    assert {stack.get(f"/charge-requests/{one}")[1]["status"] for one in ids} == {"completed"}
    assert_nothing_doubled(trouble.witness)


def test_failure_24_without_the_ledger_nothing_is_accepted_and_sessions_stand_still_until_it_is_back(trouble):
    stack = trouble.stack
    ids = stack.submit(12, energy_kwh=3, max_power_kw=11)
    stack.until_charging(ids)

    trouble.to_all.refuse()
    trouble.to_all.cut()
    _, problem = until(lambda: (answer := stack.post(vehicle_id="EV-1"))[0] == 503 and answer, "a refusal", 30)
    assert "the ledger did not confirm in time" in problem["detail"]
    until(lambda: still(trouble), "all sessions standing still", 3 * LEASE_S)
    trouble.to_all.heal()

    more = until(lambda: stack.post(vehicle_id="EV-2", energy_kwh=1)[1].get("request_id"), "an acceptance", 30)
    stack.until_ended([*ids, more], 180)
    assert_nothing_doubled(trouble.witness)
    # They went on where they stood: nobody lost its substation, because nobody could have renewed.
    assert not any(Reason.SUBSTATION_LOST in reasons(stack, one) for one in ids)


def still(trouble: Trouble) -> bool:
    """Whether no energy has been witnessed for more than a second."""
    ticks = [
        one["to_s"] for one in pieces(trouble.witness) if one["event"] == "energy" and one["substation"] != "island"
    ]

    return time.clock_gettime(time.CLOCK_BOOTTIME) - max(ticks) > 1
