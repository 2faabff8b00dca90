"""One request, and a hundred, on a running stack: what is said of them agrees with the broker and the metrics."""

import base64
import json
import re
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from harness.stack import Stack, started, until

from balancer.readings import METRIC_NAMES, parse_readings
from services.ledger.states import Reason, ended_once
from services.local.stack import free_ports

SPEED = 600


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    data = tmp_path_factory.mktemp("walk") / "data"
    with started(data, free_ports(1)[0], EVENLOAD_SPEED=str(SPEED), EVENLOAD_BALANCER_SCRAPE_INTERVAL_S="0.3") as one:
        yield one.until_up()


def queues(stack: Stack) -> dict[str, dict]:
    url, user, password = stack.console()
    request = urllib.request.Request(f"{url}/api/queues/evenload")  # noqa: S310
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return {queue["name"]: queue for queue in json.loads(response.read())}


def substation_metrics(stack: Stack, substation: str) -> dict[str, float]:
    log = (stack.data / "logs" / f"substation-{substation}.log").read_text()
    url = re.findall(r'"admin_url": "(\S+?)"', log)[-1]
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:  # noqa: S310
        text = response.read().decode()
    assert set(parse_readings(text, 0.0)) == {substation}
    line = re.compile(r"^(evenload_substation_\w+)\{.*\} (\S+)$", re.MULTILINE)
    return {name: float(value) for name, value in line.findall(text)}


def test_a_request_can_be_followed_from_its_acceptance_to_its_end(stack):
    status, accepted = stack.post(vehicle_id="EV-1", energy_kwh=22, max_power_kw=11)
    assert (status, accepted["status"]) == (202, "accepted")
    request_id = accepted["request_id"]
    assert accepted["location"] == f"/charge-requests/{request_id}"

    def ended() -> dict | None:
        answer = stack.get(accepted["location"])[1]
        return answer if answer["status"] == "completed" else None

    answer = until(ended, "the end of the session")
    assert [line["status"] for line in answer["history"]] == ["accepted", "assigned", "charging", "completed"]
    assert [line["reason"] for line in answer["history"]] == [
        Reason.SUBMITTED, Reason.DISPATCHED, Reason.CLAIMED, Reason.ENERGY_LIMIT_REACHED,
    ]  # fmt: skip
    assert ended_once(stack.history(request_id))
    times = [line["at"] for line in answer["history"]]
    assert times == sorted(times)
    assert answer["energy_delivered_kwh"] == answer["energy_requested_kwh"] == 22
    substation = answer["substation"]
    decision = answer["decision"]
    assert (decision["substation"], decision["policy"], decision["candidates_total"]) == (
        substation, "least-utilisation", 4,
    )  # fmt: skip
    metrics = substation_metrics(stack, substation)
    assert set(METRIC_NAMES) <= metrics.keys()
    assert metrics["evenload_substation_energy_joules_total"] == 22 * 3_600_000
    assert metrics["evenload_substation_claims_total"] == metrics["evenload_substation_ends_total"] == 1
    assert metrics["evenload_substation_sessions"] == 0

    def walked() -> bool:
        all_queues = queues(stack)
        stats = [
            all_queues[name].get("message_stats", {}) for name in ("charge.intake", f"charge.substation.{substation}")
        ]
        unacked = [queue["messages_unacknowledged"] + queue["messages"] for queue in all_queues.values()]
        return [(one.get("publish"), one.get("ack")) for one in stats] == [(1, 1), (1, 1)] and not any(unacked)

    until(walked, "RabbitMQ counting one envelope through each queue, and none unacked")


def test_the_originals_load_script_of_a_hundred_threads_runs_unchanged(stack):
    answers: list[tuple[int, dict]] = []

    def send() -> None:
        answers.append(stack.request("POST", "/request_charge"))

    threads = [threading.Thread(target=send) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert {answer["status"] for _, answer in answers} == {"accepted"}
    stack.until_ended([answer["request_id"] for _, answer in answers])


def test_one_idempotency_key_is_one_request_and_another_body_is_refused(stack):
    body = {"vehicle_id": "EV-key", "energy_kwh": 1}
    key = {"Idempotency-Key": "order-17"}

    def send(_number: int) -> tuple[int, dict]:
        return stack.request("POST", "/charge-requests", body, **key)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(send, range(50)))
    assert {status for status, _ in answers} == {202}
    assert len({json.dumps(answer) for _, answer in answers}) == 1
    status, problem = stack.request("POST", "/charge-requests", {**body, "energy_kwh": 2}, **key)
    assert status == 422
    assert "Idempotency-Key" in problem["detail"]
    stack.until_ended([answers[0][1]["request_id"]])


def test_a_charging_request_is_stopped_with_the_energy_it_got(stack):
    [request_id] = stack.submit(1, energy_kwh=900, max_power_kw=11)
    path = f"/charge-requests/{request_id}"
    until(lambda: stack.get(path)[1]["status"] == "charging", "a claim")

    assert stack.request("DELETE", path) == (202, {"request_id": request_id, "status": "charging"})
    stack.until_ended([request_id])

    answer = stack.get(path)[1]
    assert (answer["status"], answer["history"][-1]["reason"]) == ("stopped", Reason.REMOTE)
    assert answer["energy_delivered_kwh"] < 900
    assert stack.request("DELETE", path) == (200, {"request_id": request_id, "status": "stopped"})


def test_the_list_has_every_request_page_by_page(stack):
    request_ids = stack.submit(12, energy_kwh=1, max_power_kw=22)
    seen: list[str] = []
    cursor = ""
    while True:
        status, page = stack.get(f"/charge-requests?limit=5{cursor}")
        assert status == 200
        seen += [line["request_id"] for line in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len(seen) == len(set(seen))
    assert set(request_ids) <= set(seen)
    stack.until_ended(request_ids)
    items = stack.get("/charge-requests?status=completed&limit=500")[1]["items"]
    assert set(request_ids) <= {line["request_id"] for line in items}
    assert all(line["substation"] for line in items)


def test_more_requests_than_connectors_wait_and_all_end(stack):
    stack.until_ended(stack.submit(300, energy_kwh=5, max_power_kw=22))


@pytest.mark.parametrize("victim", ["gateway", "balancer", "substation-south", "rabbitmq"])
def test_a_service_killed_in_a_rush_comes_back_and_every_request_ends_once(stack, victim):
    process = broker_node(stack) if victim == "rabbitmq" else stack.service(victim)
    killer = threading.Timer(1.5, process.kill)
    killer.start()
    request_ids = stack.submit(80, over_s=4.0, energy_kwh=10, max_power_kw=11)
    killer.join()
    stack.until_said(rf"{victim} died \(signal SIGKILL\)")
    stack.until_ended(request_ids)
    assert until(lambda: broker_node(stack) if victim == "rabbitmq" else stack.service(victim), f"{victim} back again")


def broker_node(stack: Stack) -> psutil.Process | None:
    return next((one for one in stack.processes() if one.name() == "beam.smp"), None)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/charge-requests", {"vehicle_id": "EV-1", "energy_kwh": -1}, 422, "energy_kwh"),
        ("POST", "/charge-requests", {"vehicle_id": "EV-1", "colour": "red"}, 422, "colour"),
        ("POST", "/charge-requests", {}, 422, "vehicle_id"),
        ("GET", "/charge-requests?status=asleep", None, 422, "status"),
        ("GET", "/charge-requests/nobody", None, 404, "nobody"),
        ("GET", "/substations/nowhere", None, 404, "nowhere"),
        ("GET", "/nothing", None, 404, "/nothing"),
        ("DELETE", "/charge-requests/nobody", None, 404, "nobody"),
        ("DELETE", "/substations", None, 405, "GET"),
    ],
)
def test_a_fault_is_told_as_problem_details(stack, method, path, body, status, said):
    answered, problem = stack.request(method, path, body)
    assert answered == problem["status"] == status
    assert said in problem["detail"]
