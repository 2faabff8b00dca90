"""Every process of the stack is killed in a rush: each is back, and each request ends once."""

import pytest
from harness.commands import told
from harness.stack import until


@pytest.mark.parametrize("target", ["gateway", "balancer", "south", "rabbitmq"])
def test_a_process_killed_in_a_rush_is_back_and_every_request_ends_once(stack, target):
    with stack.rush(80, over_s=3.0, energy_kwh=4, max_power_kw=11) as rush:
        rush.until_accepted(30)
        answer = told(stack, "break", target)
    request_ids = rush.ids()

    assert answer["action"] == "kill"
    assert answer["target"] == ("substation-south" if target == "south" else target)
    assert answer["new_pid"] not in (None, answer["pid"])
    stack.until_said(rf"{answer['target']} died \(signal SIGKILL\)")
    stack.until_ended(request_ids)
    until(lambda: told(stack, "substations")["items"], "a table")
