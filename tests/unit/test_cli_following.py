"""Commands that follow something bear with a gateway that is away for a while: what was asked for stands."""

import json

import pytest
from harness.fake_gateway import NO_ANSWER, fake_gateway, line, load_table, problem, request
from typer.testing import CliRunner

from services.cli.main import app

APPLIED_AT = "2026-01-01T00:00:01.000Z"
UNAVAILABLE = (503, problem(503, "the ledger did not confirm in time"))
TROUBLES = {"a 503": UNAVAILABLE, "a reset": NO_ANSWER, "a proxy's page": (502, b"<html>Bad Gateway</html>")}


@pytest.fixture
def gateway():
    with fake_gateway() as one:
        one.answers["GET", "/substations"] = (200, load_table(line("north")))
        one.answers["PUT", "/substations/north/limit"] = (202, told())
        one.answers["PUT", "/substations/north/operational"] = (202, told())
        one.answers["POST", "/charge-requests"] = (202, {"request_id": "r-1", "status": "accepted"})
        one.answers["GET", "/charge-requests/r-1"] = (200, request())
        yield one


def told(**orders):
    kept = {"own_limit_kw": 304.0, "limit_kw": None, "until": None, "status": "Operative", "asked_at": None}
    return {"substation": "north", "orders": {**kept, "applied_at": None, **orders}}


def run(gateway, *arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, [*arguments, "--url", gateway.url])


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_limit_is_followed_through_a_gateway_that_is_away(gateway, trouble):
    applied = (200, line("north") | told(limit_kw=50.0, applied_at=APPLIED_AT))
    gateway.answers["GET", "/substations/north"] = [trouble, trouble, applied]
    shown = run(gateway, "limit", "north", "50", "--json")

    assert (shown.exit_code, shown.stderr) == (0, "")
    assert json.loads(shown.stdout)["orders"]["applied_at"] == APPLIED_AT
    assert [one[0] for one in gateway.asked] == ["PUT", "GET", "GET", "GET"]


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_drain_is_followed_through_a_gateway_that_is_away(gateway, trouble):
    drained = told(status="Inoperative", applied_at=APPLIED_AT)
    gateway.answers["GET", "/substations/north"] = [
        trouble,
        (200, line("north", sessions=3, status="Inoperative") | drained),
        trouble,
        (200, line("north", sessions=0, status="Inoperative") | drained),
    ]
    shown = run(gateway, "drain", "north")

    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "north is Inoperative" in shown.stdout


def test_a_gateway_that_stays_away_ends_the_following_and_what_is_missing_is_told(gateway):
    gateway.answers["GET", "/substations/north"] = UNAVAILABLE
    shown = run(gateway, "limit", "north", "50", "--within", "1")

    assert (shown.exit_code, shown.stdout.strip()) == (1, "")
    assert shown.stderr == ("evenload: the order stands, but not within 1 s: the gateway is away; asking again\n")


@pytest.mark.parametrize("command", [["limit", "north", "50"], ["drain", "north"], ["submit", "--wait"]])
def test_a_gateway_that_stays_away_for_longer_than_a_restart_is_told(gateway, command, monkeypatch):
    monkeypatch.setattr("services.cli.following.AWAY_MAX_S", 0)
    gateway.answers["GET", "/substations/north"] = gateway.answers["GET", "/charge-requests/r-1"] = UNAVAILABLE
    shown = run(gateway, *command)

    assert (shown.exit_code, shown.stderr) == (1, "evenload: the ledger did not confirm in time (503)\n")


@pytest.mark.parametrize("command", [["limit", "north", "50"], ["drain", "north"], ["submit", "--wait"]])
def test_a_refusal_while_something_is_followed_ends_it_at_once(gateway, command):
    gone = (404, problem(404, "there is no such thing"))
    gateway.answers["GET", "/substations/north"] = gateway.answers["GET", "/charge-requests/r-1"] = gone
    shown = run(gateway, *command)

    assert (shown.exit_code, shown.stderr) == (1, "evenload: there is no such thing (404)\n")
    assert [one[0] for one in gateway.asked[1:]] == ["GET"]


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_rush_sends_and_follows_through_a_gateway_that_is_away(gateway, trouble, monkeypatch):
    monkeypatch.setattr("services.cli.rush.TRY_AGAIN_AFTER_S", 0.01)
    monkeypatch.setattr("services.cli.rush.POLL_S", 0.05)
    monkeypatch.setattr("services.cli.rush.LOAD_TABLE_SETTLED_S", 0)
    accepted, table = gateway.answers["POST", "/charge-requests"], gateway.answers["GET", "/substations"]
    gateway.answers["POST", "/charge-requests"] = [trouble, trouble, accepted]
    gateway.answers["GET", "/charge-requests/r-1"] = [
        trouble,
        (200, request()),
        trouble,
        (200, request(status="completed")),
    ]
    gateway.answers["GET", "/substations"] = [table, trouble, table]
    shown = run(gateway, "rush", "--requests", "1", "--over", "0", "--until", "ended", "--json")

    summary = json.loads(shown.stdout)
    assert (shown.exit_code, summary["accepted"], summary["ended"]) == (0, 1, 1)
    assert (summary["refused"], summary["no_answer"], summary["substations"]) == ({}, {}, {"north": 1})
    keys = [headers["Idempotency-Key"] for method, _, headers, _ in gateway.asked if method == "POST"]
    assert (len(keys), len(set(keys))) == (3, 1)


def test_the_rates_of_top_do_not_stand_still_when_the_wall_clock_steps_back(gateway, monkeypatch):
    def counted(ended, age_s):
        return 200, load_table(line(), requests={"completed": ended}, requests_age_s=age_s)

    lines, wall = [], iter(range(1_000_000_000, 0, -3_600))

    def take(value):
        lines.append(value)
        if len(lines) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("services.cli.top.EVERY_S", 0)
    monkeypatch.setattr("services.cli.top.print_json", take)
    monkeypatch.setattr("services.cli.top.time.time", lambda: next(wall))
    gateway.answers["GET", "/charge-requests"] = (200, {"items": [], "next_cursor": None})
    gateway.answers["GET", "/substations"] = [counted(0, 100.0), counted(200, 0.0)]
    shown = run(gateway, "top", "--json")

    assert shown.exit_code == 0
    assert lines[0]["rates"] == {"accepted_per_s": None, "ended_per_s": None}
    assert lines[1]["rates"]["ended_per_s"] == pytest.approx(2, rel=0.2)
    assert lines[1]["at"] < lines[0]["at"]
