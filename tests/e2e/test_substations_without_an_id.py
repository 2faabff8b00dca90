"""Identical `substations` processes without an id, as `docker compose up --scale substation=6` starts them."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.broker import api
from harness.fleet import fleet
from harness.stack import readiness, until
from harness.witnessed import assert_nothing_doubled

from services.broker import topology
from services.ledger.states import TERMINAL

GRID = ["north", "east", "south", "west"]
SIX = sorted([*GRID, "extra-1", "extra-2"])
LEASE_S = "10"
"""Twice the default: on a busy machine it takes a while until a successor is there."""
LONG_KWH = 20
"""At 11 kW and speed 60 for 109 s: who charges so much outlives the loss of its substation."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def stack(folder, module_vhost):
    witness = str(folder / "witness")
    with fleet(folder, module_vhost, EVENLOAD_LEASE_S=LEASE_S, EVENLOAD_SUBSTATION_WITNESS=witness) as one:
        one.start_substations(6)
        until(lambda: table(one) == SIX, "all six in the load table")
        yield one


@pytest.fixture
def charging(stack):
    """Requests that charge at all substations, cancelled at the end."""
    ids = submitted(stack, 24, LONG_KWH)
    until(lambda: all(told(stack, one)["status"] == "charging" for one in ids), "24 claims")
    yield ids
    for one in ids:
        stack.request("DELETE", f"/charge-requests/{one}")
    until_ended(stack, ids)


def table(stack):
    return sorted(one["substation"] for one in stack.get("/substations")[1]["items"] if one["has_lease"])


def told(stack, request_id):
    return stack.get(f"/charge-requests/{request_id}")[1]


def reasons(stack, request_id):
    return [line["reason"] for line in told(stack, request_id)["history"]]


def submitted(stack, count, kwh):
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda n: stack.post(vehicle_id=f"EV-{n}", energy_kwh=kwh, max_power_kw=11), range(count))
        return [answer["request_id"] for _, answer in answers]


def until_ended(stack, ids):
    until(lambda: all(told(stack, one)["status"] in TERMINAL for one in ids), "every end")


def at(stack, ids, *substations):
    return [one for one in ids if told(stack, one)["substation"] in substations]


def registered(stack):
    """All that the ledger ever registered."""
    return sorted(one["substation"] for one in stack.get("/substations")[1]["items"])


def test_six_take_the_grid_files_four_and_two_more_and_all_are_used(stack):
    ids = submitted(stack, 48, 1)
    until_ended(stack, ids)

    assert {told(stack, one)["status"] for one in ids} == {"completed"}
    assert sorted({told(stack, one)["substation"] for one in ids}) == SIX
    lines = stack.get("/substations")[1]["items"]
    assert {(one["limit_kw"], one["connectors"]) for one in lines} == {(304, 40)}


def test_connections_and_consumers_are_named_after_the_substation(stack, module_vhost):
    def names():
        found = api(module_vhost.broker, "GET", f"vhosts/{module_vhost.name}/connections")
        return {one.get("client_properties", {}).get("connection_name") for one in found}

    until(lambda: {f"substation-{one} {use}" for one in SIX for use in ("publish", "consume")} <= names(), "all names")
    for one in SIX:
        [consumer] = module_vhost.queue(topology.substation_queue(one))["consumer_details"]
        assert consumer["consumer_tag"] == f"substation-{one} {one}"


def test_the_log_tells_which_was_taken_and_why(stack):
    [north], [extra] = (stack.host_of(one).said("substation_chosen") for one in ("north", "extra-1"))

    assert north["reason"] == "nobody ever held it"
    assert extra["reason"] == "all others are held"
    assert stack.host_of("north").said("service_ready")[0]["instance"] == "substation-north"


def test_one_that_is_killed_is_taken_again_by_the_next_and_its_sessions_go_on(stack, charging):
    theirs = at(stack, charging, "east")
    stack.host_of("east").kill()

    successor = stack.start("substations")
    until(lambda: "east" in [line["substation"] for line in successor.said("substation_awaited")], "a wait for east")
    assert readiness(successor.admin_port)[0] == 503
    assert 'substation="' not in successor.metrics()
    successor.until_ready()

    assert 'substation="east"' in successor.metrics()
    assert successor.substation == "east"
    assert successor.said("substation_chosen")[0]["reason"] == "its holder has fallen silent"
    until(lambda: all("resumed" in reasons(stack, one) for one in theirs), "the return of its sessions")
    for one in charging:
        assert (told(stack, one)["status"], told(stack, one)["attempt"]) == ("charging", 1)


def test_one_that_leaves_is_taken_by_the_next_at_once(stack):
    assert stack.host_of("extra-1").leave() == 0

    [successor] = stack.start_substations(1)

    assert successor.substation == "extra-1"
    assert successor.said("substation_chosen")[0]["reason"] == "its holder left in order"


def test_four_that_are_killed_at_once_get_back_what_they_had_and_no_more_is_made(stack, charging):
    lost = ["north", "south", "west", "extra-2"]
    theirs = at(stack, charging, *lost)
    for one in [stack.host_of(one) for one in lost]:
        one.kill()

    successors = stack.start_substations(4)

    assert sorted(one.substation for one in successors) == sorted(lost)
    assert registered(stack) == SIX
    until(lambda: all("resumed" in reasons(stack, one) for one in theirs), "the return of all sessions")
    assert {told(stack, one)["attempt"] for one in charging} == {1}


def test_one_that_has_none_yet_leaves_when_it_is_told_to(stack):
    waiting = stack.start("substations")
    until(lambda: waiting.said("substation_awaited"), "a wait for somebody's beat")

    assert waiting.leave() == 0
    assert waiting.substation is None


def test_one_that_was_frozen_for_too_long_ends_and_its_successor_takes_what_is_free(stack):
    frozen = stack.host_of("south")
    frozen.process.send_signal(signal.SIGSTOP)
    [successor] = stack.start_substations(1)
    assert successor.substation == "south"

    frozen.process.send_signal(signal.SIGCONT)

    assert frozen.process.wait(60) == 2
    said = frozen.text().splitlines()[-1]
    assert "substation 'south' is hosted by " in said
    assert "is alive: stop that process" in said
    [again] = stack.start_substations(1)  # as its supervisor would
    assert again.substation == "extra-3"


def test_nothing_was_lost_doubled_or_broken(stack, folder):
    """The last one."""
    until(lambda: not stack.get("/substations")[1]["requests"]["charging"], "a count that shows every end")

    assert not stack.balancer.said("promise_broken")
    assert_nothing_doubled(folder / "witness")
