"""A stack has recovered when requests are completed in every zone, and when nobody finds anything any more."""

import asyncio

import pytest
from harness import chaos_recovery
from harness.chaos_recovery import Recoveries, what_is_wrong
from harness.chaos_schedule import QUEUES
from harness.chaos_stack import named_at_the_broker


class Stack:
    """Says what it was told to say, once each."""

    def __init__(self, unready=(), missing=()):
        self._unready, self._missing = list(unready), list(missing)

    async def not_ready(self):
        return self._unready.pop(0) if self._unready else set()

    async def missing_at_the_broker(self):
        return self._missing.pop(0) if self._missing else set()


class Clients:
    """Requests of the zones in `deaf` never end, those in `refused` are refused, those in `astray` charge in west."""

    def __init__(self, deaf=(), refused=(), astray=(), slow=()):
        self._deaf, self._refused, self._astray, self._slow = deaf, refused, astray, slow
        self.bodies = []
        self.figures = type("Figures", (), {"refused": []})

    async def submit(self, key, body, energy_j, gateway=0):
        self.bodies.append((key, body))
        return None if body["zone"] in self._refused else f"id-{body['zone']}"

    async def look_up(self, request_id):
        zone = request_id.removeprefix("id-")
        await asyncio.sleep(0.3 if zone in self._slow else 0)
        if zone in map(str, self._deaf):
            return {"title": "not found", "status": 404}
        return {"status": "completed", "substation": "west" if zone in self._astray else zone}


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
    assert recovery.slowest in {"any zone", *QUEUES}
    assert (recovery.missing, recovery.last) == ("", "at the broker: consumer balancer-2")
    assert {body["zone"] for _, body in clients.bodies} == {None, *QUEUES}
    assert looking.probes == len({key for key, _ in clients.bodies}) == 5


async def test_the_slowest_zone_is_what_counts(recoveries):
    recovery = await recoveries(Stack(), Clients(slow=["south"])).look()
    assert recovery.slowest == "south"
    assert recovery.completed_s >= 0.3


@pytest.mark.parametrize(
    ("clients", "missing"),
    [
        (Clients(deaf=["east"]), "a completed request of east"),
        (Clients(deaf=[None]), "a completed request of any zone"),
        (Clients(refused=[None]), "a completed request of any zone (ProbeRefused([]))"),
        (Clients(astray=["south"]), "a completed request of south (WrongZone('west completed it'))"),
    ],
)
async def test_a_probe_that_is_lost_refused_or_charged_elsewhere_is_no_completed_request(recoveries, clients, missing):
    recovery = await recoveries(Stack(), clients).look()
    assert (recovery.completed_s, recovery.well_s, recovery.missing) == (None, None, missing)


async def test_what_the_doctor_finds_at_the_end_is_told(recoveries):
    async def found():
        return "doctor: broker: north has no binding"

    recovery = await recoveries(Stack(), Clients(), found).look()
    assert recovery.completed_s is not None
    assert (recovery.well_s, recovery.missing) == (None, "doctor: broker: north has no binding")


@pytest.mark.parametrize(
    ("code", "told", "words"),
    [
        (0, b"", ""),
        (1, b'{"checks": [{"check": "broker", "said": "gone", "finding": "fault"}]}', "doctor: broker: gone"),
        (1, b'{"checks": [{"check": "a", "said": "b", "finding": "note"}]}', "doctor: exit code 1"),
        (-9, b"", "doctor: exit code -9"),
        (1, b'{"chec', "doctor: exit code 1, and it said b'{\"chec'"),
    ],
)
def test_what_the_doctor_said_is_told_also_where_it_was_cut_short(code, told, words):
    assert what_is_wrong(code, told) == words


def test_what_the_broker_tells_of_a_connection_that_has_just_been_opened_is_no_failure_of_the_judge():
    known = {"client_properties": {"connection_name": "gateway-1 publish"}, "channels": 1}
    found = named_at_the_broker(
        [{"channels": 1}, {}, known], [{"consumer_tag": "north"}, {}], [{"name": "charge.dead"}], [{"source": "a"}]
    )
    assert {"gateway-1 publish", "consumer north", "charge.dead"} <= found
