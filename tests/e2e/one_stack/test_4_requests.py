"""Requests of many clients: what each gets back, and what the gateway says of them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.ledger.states import Reason


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
    stack.until_charging([request_id])

    assert stack.request("DELETE", path) == (202, {"request_id": request_id, "status": "charging"})
    stack.until_ended([request_id])

    answer = stack.get(path)[1]
    assert (answer["status"], answer["history"][-1]["reason"]) == ("stopped", Reason.REMOTE)
    assert answer["energy_delivered_kwh"] < 900
    assert stack.request("DELETE", path) == (200, {"request_id": request_id, "status": "stopped"})


def test_the_list_has_every_request_page_by_page(stack):
    request_ids = stack.submit(12, energy_kwh=1, max_power_kw=22)
    seen = [line["request_id"] for page in stack.pages(limit=50) for line in page]
    assert len(seen) == len(set(seen))
    assert set(request_ids) <= set(seen)
    stack.until_ended(request_ids)
    items = stack.get("/charge-requests?status=completed&limit=500")[1]["items"]
    assert set(request_ids) <= {line["request_id"] for line in items}
    assert all(line["substation"] for line in items)


def test_more_requests_than_connectors_wait_and_all_end(stack):
    stack.until_ended(stack.submit(300, energy_kwh=5, max_power_kw=22))


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
