"""Prometheus beside the stack: it knows everybody, its figures are the ledger's, and nobody depends on it."""

import collections

import psutil
import pytest
from harness.commands import told
from harness.prometheus import Prometheus, expressions
from harness.stack import Stack, until

SUBSTATIONS = {"north", "east", "south", "west"}


@pytest.fixture(scope="module")
def prometheus(stack):
    return Prometheus(stack.until_said(r"Prometheus +(http://127\.0\.0\.1:\d+)").group(1))


def process(stack: Stack) -> psutil.Process | None:
    return next((one for one in stack.processes() if one.name() == "prometheus"), None)


def test_it_finds_everybody(stack, prometheus):
    everybody = {(job, job) for job in ("gateway", "balancer", "prometheus", "rabbitmq")}
    everybody |= {("rabbitmq-queues", "rabbitmq")} | {("substations", one) for one in SUBSTATIONS}

    until(lambda: prometheus.health() == dict.fromkeys(everybody, "up"), "every target up")


def test_every_question_of_the_dashboards_has_an_answer_and_the_counts_are_the_ledgers(stack, prometheus):
    assert {stack.post(vehicle_id="EV-1", energy_kwh=-1)[0] for _ in range(3)} == {422}
    unanswered = expressions()

    def all_answered() -> bool:
        unanswered[:] = [one for one in unanswered if not prometheus.shows(one)]
        return not unanswered

    with stack.rush(200, over_s=10, energy_kwh=6, max_power_kw=11) as rush:
        until(all_answered, f"an answer to {unanswered}")
    request_ids = rush.ids()
    stack.until_ended(request_ids)

    completed = stack.get("/charge-requests?status=completed&limit=500")[1]["items"]
    assert set(request_ids) <= {line["request_id"] for line in completed}
    charged = collections.Counter(line["substation"] for line in completed)

    def agrees() -> bool:
        claims = prometheus.by("substation", "evenload_substation_claims_total")
        states = prometheus.by("state", "evenload_gateway_requests")
        assigned = prometheus.by("substation", "sum by (substation) (evenload_balancer_assignments_total)")
        refused = prometheus.by("outcome", "evenload_gateway_http_requests_total")["422"]
        counted = (claims, states["completed"], sum(assigned.values()) >= len(completed), refused)
        return counted == (charged, len(completed), True, 3)

    until(agrees, f"Prometheus counting {charged}")


def test_who_is_silent_stays_a_target_that_is_down(stack, prometheus):
    north = stack.service("substation-north")
    north.suspend()
    try:
        until(lambda: prometheus.by("instance", 'up{job="substations"} == 0') == {"north": 0}, "north seen down")
        assert len(stack.get("/targets")[1]) == len(SUBSTATIONS)
    finally:
        north.resume()
    until(lambda: prometheus.by("instance", 'up{job="substations"} == 1').keys() == SUBSTATIONS, "north up again")


def test_it_comes_back_when_it_is_broken_and_after_the_third_time_the_stack_goes_on_without(stack):
    assert told(stack, "break", "prometheus")["target"] == "prometheus"
    for _ in range(2):
        victim = until(lambda: process(stack), "Prometheus")
        victim.kill()
        until(lambda gone=victim: not gone.is_running(), "its end")

    stack.until_said(r"prometheus died 3 times[\s\S]*going on without prometheus")
    assert process(stack) is None
    stack.until_ended(stack.submit(4, energy_kwh=1, max_power_kw=11))
