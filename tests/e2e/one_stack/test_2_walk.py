"""One request from its acceptance to its end: what is said of it agrees with the broker and the metrics."""

import base64
import json
import re
import urllib.request

from harness.stack import Stack, until

from balancer.readings import METRIC_NAMES, parse_readings
from services.ledger.states import Reason, ended_once

INTAKE = "charge.intake"


def queues(stack: Stack) -> dict[str, dict]:
    url, user, password = stack.console()
    request = urllib.request.Request(f"{url}/api/queues/evenload")  # noqa: S310
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        return {queue["name"]: queue for queue in json.loads(response.read())}


def queue_of(substation: str) -> str:
    return f"charge.substation.{substation}"


def metrics(stack: Stack, instance: str) -> str:
    url = f"http://127.0.0.1:{stack.admin_port(instance)}/metrics"
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()


def substation_metrics(stack: Stack, substation: str) -> dict[str, float]:
    text = metrics(stack, f"substation-{substation}")
    assert set(parse_readings(text, 0.0)) == {substation}
    line = re.compile(r"^(evenload_substation_\w+)\{.*\} (\S+)$", re.MULTILINE)
    return {name: float(value) for name, value in line.findall(text)}


def acked(stack: Stack, outcomes: str) -> dict[str, int]:
    """Messages that the services have acknowledged, by queue: envelopes are `acked`; the gateways' are a `probe`."""
    by_reader = {INTAKE: "balancer"} | {
        queue_of(one): f"substation-{one}" for one in ("north", "east", "south", "west")
    }
    found = {}
    for queue, instance in by_reader.items():
        line = rf'^evenload_messages_settled_total{{outcome="(?:{outcomes})",queue="{queue}"}} (\S+)$'
        matches = re.findall(line, metrics(stack, instance), re.MULTILINE)
        found[queue] = int(sum(map(float, matches)))
    return found


def walked_at_the_broker(stack: Stack) -> dict[str, int] | None:
    """Envelopes that the broker has seen published and acknowledged, by queue; None while it holds some."""
    found = queues(stack)
    if any(queue["messages"] or queue["messages_unacknowledged"] for queue in found.values()):
        return None
    stats = {name: queue.get("message_stats", {}) for name, queue in found.items() if name != "charge.graveyard"}
    work = {name: one for name, one in stats.items() if name == INTAKE or name.startswith("charge.substation.")}
    if any("ack" not in one or one.get("publish") != one["ack"] for one in work.values()):
        return None
    return {name: one["ack"] for name, one in work.items()}


def test_a_request_can_be_followed_from_its_acceptance_to_its_end(stack):
    until(lambda: acked(stack, "acked|probe") == walked_at_the_broker(stack), "counts that agree")
    before = acked(stack, "acked")
    substations = {one: substation_metrics(stack, one) for one in ("north", "east", "south", "west")}

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

    after = substation_metrics(stack, substation)
    assert set(METRIC_NAMES) <= after.keys()
    for name, more in (("energy_joules_total", 22 * 3_600_000), ("claims_total", 1), ("ends_total", 1)):
        metric = f"evenload_substation_{name}"
        assert after[metric] == substations[substation].get(metric, 0) + more
    assert after["evenload_substation_sessions"] == 0

    # One envelope went through each of the two queues.
    expected = {name: count + (name in (INTAKE, queue_of(substation))) for name, count in before.items()}
    assert acked(stack, "acked") == expected
    until(lambda: acked(stack, "acked|probe") == walked_at_the_broker(stack), "RabbitMQ counting the same")
