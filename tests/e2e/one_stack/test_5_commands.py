"""The operator's commands on a live stack, in a terminal and for programs."""

import base64
import json
import subprocess
import urllib.request

import pytest
from harness.commands import EVENLOAD, environment, seen, told
from harness.stack import ROOT, until


def test_a_request_is_submitted_followed_and_explained(stack):
    terminal = seen(stack, "submit", "--vehicle-id", "EV-PTY", "--energy-kwh", "5", "--wait")
    assert terminal.wait() == 0
    for word in ("EV-PTY", "accepted", "look at", "completed", "5 of 5 kWh", "EnergyLimitReached", "lowest score"):
        assert word in terminal.text
    request_id = terminal.until_said(r"evenload status (\S+)").group(1)

    page = seen(stack, "status", request_id)
    assert page.wait() == 0
    for word in (request_id, "history", "submitted", "dispatched", "claimed", "decision", "▸", "candidate", "score"):
        assert word in page.text
    assert told(stack, "status", request_id) == stack.get(f"/charge-requests/{request_id}")[1]

    sent = told(stack, "submit", "--key", "once")
    assert (
        told(stack, "submit", "--key", "once", "--vehicle-id", sent["vehicle_id"])["request_id"] == sent["request_id"]
    )


def test_a_rush_is_told_to_people_and_to_programs(stack):
    terminal = seen(stack, "rush", "--requests", "20", "--over", "1", columns=120)
    assert terminal.wait() == 0
    for word in ("sent", "claimed", "20/20", "demand ÷ limit", "north"):
        assert word in terminal.text

    answer = told(stack, "rush", "--requests", "20", "--over", "1", "--until", "ended")
    assert (answer["requests"], answer["accepted"], answer["ended"], answer["refused"]) == (20, 20, 20, {})
    assert sum(answer["substations"].values()) == 20
    assert answer["verdict"]


def test_the_counts_and_the_newest_are_shown_and_the_gateways_counts_come_true(stack):
    request_id = stack.submit(1, energy_kwh=1)[0]
    stack.until_ended([request_id])
    page = seen(stack, "status", "--limit", "5")
    assert page.wait() == 0
    for word in ("accepted", "completed", "ago", request_id):
        assert word in page.text

    def all_counted() -> bool:
        return stack.count() == sum(told(stack, "status")["requests"].values())

    until(all_counted, "counts that agree with the list")
    assert told(stack, "status", "--state", "failed", "--substation", "north")["items"] == []


def test_the_load_table_is_shown_and_is_that_of_the_gateway(stack):
    table = seen(stack, "substations", columns=110)
    assert table.wait() == 0
    for word in ("north", "east", "south", "west", "/40", "of 304 kW", "told by balancer"):
        assert word in table.text
    assert told(stack, "substations").keys() == stack.get("/substations")[1].keys()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (120, 40)])
def test_top_shows_a_rush_live_until_ctrl_c(stack, columns, lines):
    terminal = seen(stack, "top", columns=columns, lines=lines)
    terminal.until_said("evenload top")
    (request_id,) = stack.submit(1, energy_kwh=20, max_power_kw=22)
    terminal.until_said(f"{request_id[:8]}.*charging")
    terminal.until_said(f"{request_id[:8]}.*→ completed")
    for word in ("north", "━", "/40", "accepted/s", "ended/s", "cancelled"):
        assert word in terminal.text
    terminal.press_ctrl_c()
    assert terminal.wait() == 0
    assert "Traceback" not in terminal.text


def test_top_tells_programs_a_line_a_second_or_once(stack):
    once = told(stack, "top", "--once")
    assert {one["substation"] for one in once["substations"]} == {"north", "east", "south", "west"}
    command = ["env", "--default-signal=INT", EVENLOAD, "top", "--json"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(stack), stdout=subprocess.PIPE, text=True) as watching:
        first = json.loads(watching.stdout.readline())
        (request_id,) = stack.submit(1, energy_kwh=1)
        changes = []
        while not any(one["request_id"] == request_id and one["status"] == "completed" for one in changes):
            line = json.loads(watching.stdout.readline())
            assert line.keys() == first.keys() == once.keys()
            changes += line["changes"]
        watching.send_signal(2)
        assert watching.wait(20) == 0


def test_poison_is_quarantined_and_listed_and_stays(stack):
    assert told(stack, "dead") == {"queue": "charge.graveyard", "messages": 0, "items": []}
    url, user, password = stack.console()
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(  # noqa: S310
        f"{url}/api/exchanges/evenload/charge.requests/publish",
        data=json.dumps(
            {"properties": {}, "routing_key": "", "payload": "\x1b[2Jpoison", "payload_encoding": "string"}
        ).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        assert json.loads(response.read()) == {"routed": True}

    [item] = until(lambda: told(stack, "dead")["items"], "the message in the graveyard")

    assert (item["queue"], item["body"]) == ("charge.intake", r"\x1b[2Jpoison")
    terminal = seen(stack, "dead", columns=120)
    assert terminal.wait() == 0
    for word in ("charge.intake", r"\x1b[2Jpoison", "1 in charge.graveyard"):
        assert word in terminal.text
