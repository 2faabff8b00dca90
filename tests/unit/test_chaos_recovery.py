"""A stack has recovered when requests are completed in every zone, and when nobody finds anything any more."""

import asyncio

import pytest
from harness import chaos_recovery
from harness.chaos_recovery import Recoveries
from harness.chaos_schedule import QUEUES


class Stack:
    """Says what it was told to say, once each."""

    def __init__(self, unready=(), missing=()):
        self._unready, self._missing = list(unready), list(missing)

    async def not_ready(self):
        return self._unready.pop(0) if self._unready else set()

    async def missing_at_the_broker(self):
        return self._missing.pop(0) if self._missing else set()


class Clients:
    """Requests of the zones in `deaf` never end, and those in `refused` are refused."""

    def __init__(self, deaf=(), refused=()):
        self._deaf, self._refused = deaf, refused
        self.bodies = []
        self.figures = type("Figures", (), {"refused": []})

    async def submit(self, key, body, energy_j, gateway=0):
        self.bodies.append((key, body))
        return None if body["zone"] in self._refused else f"id-{body['zone']}"

    async def status(self, request_id):
        await asyncio.sleep(0)
        return 404 if request_id in {f"id-{zone}" for zone in self._deaf} else "completed"


async def nothing_found():
    return ""


@pytest.fixture
def recoveries(monkeypatch):
    """Makes what looks for recovery, and does not wait long for it."""
    monkeypatch.setattr(chaos_recovery, "COMPLETED_WITHIN_S", 1.0)
    monkeypatch.setattr(chaos_recovery, "WELL_WITHIN_S", 1.0)
    monkeypatch.setattr(chaos_recovery, "DOCTOR_WITHIN_S", 1.0)
    monkeypatch.setattr(chaos_recovery, "WELL_POLL_S", 0.01)
    return lambda stack, clients, ask_doctor=nothing_found: Recoveries(stack, clients, ask_doctor)


async def test_all_is_well_once_nobody_finds_anything_and_the_last_fault_is_told(recoveries):
    clients = Clients()
    stack = Stack([{"balancer-1"}], [{"charge.dead"}, {"consumer balancer-2"}])
    looking = recoveries(stack, clients)
    recovery = await looking.look()
    assert 0 <= recovery.completed_s <= recovery.well_s
    assert (recovery.missing, recovery.last) == ("", "at the broker: consumer balancer-2")
    assert {body["zone"] for _, body in clients.bodies} == {None, *QUEUES}
    assert looking.probes == len({key for key, _ in clients.bodies}) == 5


async def test_a_zone_that_completes_nothing_is_not_well_though_others_are_quick(recoveries):
    recovery = await recoveries(Stack(), Clients(deaf=["east"])).look()
    assert recovery.completed_s is not None
    assert (recovery.well_s, recovery.missing) == (None, "a completed request of east")


@pytest.mark.parametrize("clients", [Clients(deaf=[None]), Clients(refused=[None])])
async def test_a_probe_that_is_lost_or_refused_is_no_completed_request(recoveries, clients):
    recovery = await recoveries(Stack(), clients).look()
    assert (recovery.completed_s, recovery.well_s) == (None, None)
    assert recovery.missing == "a completed request of any zone"


async def test_what_the_doctor_finds_at_the_end_is_told(recoveries):
    async def found():
        return "doctor: broker: north has no binding"

    recovery = await recoveries(Stack(), Clients(), found).look()
    assert recovery.completed_s is not None
    assert (recovery.well_s, recovery.missing) == (None, "doctor: broker: north has no binding")
