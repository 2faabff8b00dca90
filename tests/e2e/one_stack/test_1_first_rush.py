"""What a newcomer sees: `make run` serves its first rush evenly."""

import re

EACH = re.compile(r"│ (north|east|south|west) +│ +(\d+) +│ +(\d+) +│")


def test_the_first_rush_is_served_evenly(stack):
    rows = EACH.findall(stack.output)
    assert len(rows) == 4, stack.output
    for substation, requests, of_the_first in rows:
        assert 28 <= int(requests) <= 32, (substation, stack.output)
        assert int(of_the_first) >= 3, (substation, stack.output)
    assert sum(int(requests) for _, requests, _ in rows) == 120
    assert "even: 30 requests a substation" in stack.output


def test_the_stack_says_where_everything_is(stack):
    status, _ = stack.get("/substations")
    assert status == 200
    assert f"http://127.0.0.1:{stack.port}" in stack.output
    assert stack.console()
    assert "ignoring variables that an orchestrator wrote for its services: EVENLOAD_PORT\n" in stack.output
    assert stack.pids().keys() >= {"gateway", "balancer", "substation-north", "rabbitmq"}
