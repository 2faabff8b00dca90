"""`docker compose up` as people meet it: healthy, even, counted alike by everybody, and not to be broken.

The tests walk through the life of one stack, in this order.
"""

import json
import re
from collections import Counter

import pytest
from harness.broker_rights import OWN_WORK, allowed
from harness.compose import ended, until, up

OURS = ("gateway", "balancer", "substation")
AREA = ("north", "east", "south", "west")
IMAGE_MB = 250


@pytest.fixture(scope="module")
def stack(project):
    with up(project) as running:
        yield running


def test_everything_is_healthy(stack):
    expected = {"gateway": 1, "balancer": 2, "substation": 4}
    expected |= dict.fromkeys(("rabbitmq", "postgres", "prometheus", "locust"), 1)
    if not stack.engine.is_ours:
        expected["grafana"] = 1
    assert stack.health() == {service: ["healthy"] * count for service, count in expected.items()}


def test_each_substation_of_the_area_has_a_process_of_its_own(stack):
    seen = until(lambda: fresh(stack, 4), "four fresh readings")
    assert sorted(seen) == sorted(AREA)
    targets = stack.get("/targets")
    assert len({address for one in targets for address in one["targets"]}) == 4


def test_our_containers_may_do_next_to_nothing(stack):
    for service in OURS:
        for container in stack.containers(service):
            told = stack.inspect(container)
            assert told["HostConfig"]["ReadonlyRootfs"]
            assert told["HostConfig"]["CapDrop"] == ["ALL"]
            assert not told["HostConfig"]["CapAdd"]
            assert not told["HostConfig"]["Privileged"]
            assert not told["Mounts"]
            assert told["HostConfig"]["Memory"] > 0
            # As the kernel sees the service itself, which is not the first process there.
            status = stack.inside(container, "sh", "-c", "cat /proc/[0-9]*/status").stdout.splitlines()
            assert {line.split()[1] for line in status if line.startswith("Uid:")} == {"10001"}
            assert {line.split()[1] for line in status if line.startswith("CapEff:")} == {"0" * 16}
            assert {line.split()[1] for line in status if line.startswith("NoNewPrivs:")} == {"1"}
            assert stack.inside(container, "sh", "-c", "echo > /home/file || echo > /tmp/file", check=False).returncode


def test_the_image_is_small_and_holds_no_build_tools(stack):
    [gateway] = stack.containers("gateway")
    sizes = [
        int(stack.engine.run("docker", "image", "inspect", "--format", "{{.Size}}", image).stdout)
        for image in (stack.inspect(gateway)["Image"], "python:3.13.9-slim-trixie")
    ]
    added_mb = (sizes[0] - sizes[1]) / 1e6
    print(f"the image adds {added_mb:.0f} MB to its base")
    assert 0 < added_mb < IMAGE_MB
    for tool in ("gcc", "make", "git", "pip"):
        assert stack.inside(gateway, "sh", "-c", f"command -v {tool}", check=False).stdout == ""
    for module in ("hatchling", "pip"):
        assert "No module named" in stack.inside(gateway, "python", "-c", f"import {module}", check=False).stderr


async def test_each_broker_user_can_do_its_work_and_is_refused_the_rest(stack):
    [broker] = stack.containers("rabbitmq")
    [network] = stack.inspect(broker)["NetworkSettings"]["Networks"].values()
    for role, own_work in OWN_WORK.items():
        assert await allowed(f"amqp://{role}:demo-{role}@{network['IPAddress']}:5672/evenload") == own_work


def test_a_rush_is_spread_evenly_and_counted_alike_by_everybody(stack):
    told = ended(stack.rush(200, over_s=10))
    assert told["substations"] == pytest.approx(dict.fromkeys(AREA, 50), abs=2)
    ledger = until(lambda: counted_alike(stack), "Prometheus counts what the ledger counts")
    assert ledger == told["substations"]


def test_two_balancers_share_the_work(stack):
    assigned = until(lambda: stack.query("count(sum by (instance) (evenload_balancer_assignments_total) > 0)"), "work")
    assert assigned == {"": 2}


def test_locust_plays_a_rush_hour_through_its_page(stack):
    rush = {"user_classes": "PublicDrivers", "shape_class": "RushHour", "vehicles": 150, "rush_speed": 900,
            "longest_minutes": 3}  # fmt: skip
    assert stack.post_form("/swarm", rush, "LOCUST_PORT")["success"]
    ended = until(lambda: locust_ended(stack), "locust sees the end of its rush")
    # Vehicles arrive at random.
    assert ended["POST"]["num_requests"] == pytest.approx(150, abs=75)
    assert ended["accepted → charging"]["num_requests"] == ended["POST"]["num_requests"]
    assert ended["accepted → ended"]["num_requests"] == ended["POST"]["num_requests"]
    assert not any(one["num_failures"] for one in ended.values())


def test_an_operators_commands_are_at_hand_in_a_container(stack):
    [gateway] = stack.containers("gateway")

    def completed() -> int:
        return json.loads(stack.inside(gateway, "evenload", "status", "--json").stdout)["requests"]["completed"]

    until(lambda: completed() == len(requests(stack)), "the command line counts them all")


def test_the_doctor_in_a_container_finds_the_whole_stack_well(stack):
    code, told = doctor(stack)
    assert code == 0, told


def doctor(stack):
    [gateway] = stack.containers("gateway")
    told = stack.inside(gateway, "evenload", "doctor", check=False)
    return told.returncode, " ".join((told.stdout + told.stderr).split())


def test_nothing_is_lost_when_broker_and_substation_are_killed_under_load(stack):
    before = len(requests(stack))
    [broker] = stack.containers("rabbitmq")
    substation = stack.containers("substation")[0]
    rush = stack.rush(300, over_s=30)
    until(lambda: len(requests(stack)) > before + 60, "the rush is under way")
    stack.kill(broker)
    stack.kill(substation)
    until(lambda: len(requests(stack)) > before + 150, "requests are accepted without a broker")
    code, told = doctor(stack)
    assert code == 1
    assert "no broker answers at amqp://gateway:***@rabbitmq:5672/evenload" in told
    assert re.search(r"services substations (north|east|south|west): it does not answer at http", told)
    stack.start(broker)
    stack.start(substation)
    ended(rush)
    until(lambda: set(Counter(one["status"] for one in requests(stack))) == {"completed"}, "all have completed")
    assert len(requests(stack)) == before + 300
    for one in requests(stack):
        assert one["energy_delivered_kwh"] == one["energy_requested_kwh"]
    until(lambda: {tuple(set(one)) for one in stack.health().values()} == {("healthy",)}, "all are healthy again")
    assert stack.query("sum(evenload_balancer_conservation_breaches_total)") == {"": 0}
    until(lambda: doctor(stack)[0] == 0, "the doctor finds all well again")
    until(lambda: sorted(fresh(stack, 4)) == sorted(AREA), "the killed one has its own substation again")


def test_who_is_scaled_in_is_used(stack):
    stack.up("--no-recreate", "--scale", "substation=6", "--scale", "balancer=3")
    seen = until(lambda: fresh(stack, 6), "six fresh readings")
    more = sorted(set(seen) - set(AREA))
    assert more == ["extra-1", "extra-2"]
    told = ended(stack.rush(120, over_s=10))
    assert told["substations"] == pytest.approx(dict.fromkeys(seen, 20), abs=2)
    until(lambda: stack.query('count(up{job="substations"} == 1)') == {"": 6}, "Prometheus sees all six")
    until(lambda: stack.query('count(up{job="balancer"} == 1)') == {"": 3}, "Prometheus sees three balancers")


def test_who_is_scaled_away_leaves_its_work_to_the_others(stack):
    rush = stack.rush(120, over_s=10, energy_kwh=6)
    until(lambda: sum(one["sessions"] for one in stack.get("/substations")["items"]) > 60, "sessions everywhere")
    stack.up("--no-recreate", "--scale", "substation=4", "--scale", "balancer=2")
    ended(rush)
    until(lambda: stack.query("count(up == 0) or vector(0)") == {"": 0}, "no target is left that is not there")
    assert len(fresh(stack, 4)) == 4


def locust_ended(stack) -> dict[str, dict]:
    """Locust's statistics once its run is over, by what they are of."""
    told = stack.get("/stats/requests", "LOCUST_PORT")
    shown = {one["name"] if one["method"] == "E2E" else one["method"]: one for one in told["stats"]}
    return shown if told["state"] == "stopped" else {}


def fresh(stack, count: int) -> list[str]:
    """The substations whose reading is fresh, once there are so many."""
    seen = [one["substation"] for one in stack.get("/substations")["items"] if one["fresh"] and one["has_lease"]]
    return seen if len(seen) == count else []


def requests(stack) -> list[dict]:
    """All requests in the ledger, by the pages of the API."""
    found, cursor = [], ""
    while cursor is not None:
        page = stack.get(f"/charge-requests?limit=500{cursor and f'&cursor={cursor}'}")
        found += page["items"]
        cursor = page["next_cursor"]
    return found


def counted_alike(stack) -> dict[str, int]:
    """Claims of each substation in the ledger, once Prometheus has the same; and as many ends."""
    ledger = Counter(one["substation"] for one in requests(stack) if one["status"] == "completed")
    claims = stack.query("sum by (substation) (evenload_substation_claims_total)")
    ends = stack.query('sum by (substation) (evenload_substation_ends_total{reason="EnergyLimitReached"})')
    states = stack.query('max(evenload_gateway_requests{state="completed"})')
    alike = claims == ends == dict(ledger) and states == {"": ledger.total()}
    return dict(ledger) if alike else {}
