"""The commands on a gateway that says what a test tells it to: what is shown, and the exit code."""

import json
import subprocess
import sys

import pytest
from harness.fake_gateway import NO_ANSWER, fake_gateway, line, load_table, problem, request
from typer.testing import CliRunner

from services.cli.main import app
from services.cli.rush import TRIES
from services.local.ports import free_ports


@pytest.fixture
def gateway():
    with fake_gateway() as one:
        one.answers["GET", "/substations"] = (200, load_table(line("north"), line("south", utilisation=1.09)))
        one.answers["GET", "/charge-requests"] = (200, {"items": [request()], "next_cursor": None})
        one.answers["GET", "/charge-requests/r-1"] = (200, request())
        one.answers["POST", "/charge-requests"] = (202, {"request_id": "r-1", "status": "accepted"})
        yield one


def run(gateway, *arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, [*arguments, "--url", gateway.url])


def test_the_load_table_is_shown_and_given_as_it_came(gateway):
    shown = run(gateway, "substations")
    told = run(gateway, "substations", "--json")

    assert (shown.exit_code, told.exit_code) == (0, 0)
    for word in ("north", "14/40", "152 of 304 kW", "109%", "+2", "0.4 s", "balancer-1"):
        assert word in shown.stdout
    assert "bays" not in shown.stdout
    assert json.loads(told.stdout) == gateway.answers["GET", "/substations"][1]


def test_bays_zones_and_silence_are_shown_where_they_are_told(gateway):
    strange = line("a", bays=10, bays_taken=3, zone="hills", fresh=False, utilisation=None, status="Inoperative")
    gateway.answers["GET", "/substations"] = (200, load_table(strange, age_s=60))
    shown = run(gateway, "substations").stdout

    for word in ("3/10", "hills", "silent", "Inoperative", "no balancer tells any more"):
        assert word in shown


def test_before_a_balancer_was_heard_the_commands_say_so(gateway):
    gateway.answers["GET", "/substations"] = (
        200, load_table(as_of=None, age_s=None, balancer=None, requests=None, requests_age_s=None),
    )  # fmt: skip

    assert "no balancer has told" in run(gateway, "substations").stdout
    assert "not counted" in run(gateway, "status").stdout
    assert "no substation is known yet" in run(gateway, "top", "--once").stdout


def test_a_request_is_shown_with_its_history_and_the_reason_for_its_substation(gateway):
    candidates = [
        {"substation": name, "score": score, "demand_kw": 10, "limit_kw": 304, "sessions": 1, "connectors": 40,
         "in_flight": 0, "reading_age_s": 0.2}
        for name, score in (("north", 0.25), ("south", 0.5))
    ]  # fmt: skip
    decision = {
        "policy": "least-utilisation", "substation": "north", "limited_by": "power", "tied": 1,
        "candidates": candidates, "candidates_total": 3, "excluded": {"stale": 1, "new_cause": 2},
    }  # fmt: skip
    gateway.answers["GET", "/charge-requests/r-1"] = (200, request(decision=decision))
    shown = run(gateway, "status", "r-1")

    assert shown.exit_code == 0
    for word in ("charging", "2.5 of 10 kWh", "submitted", "claimed", "▸ north", "0.25", "south", "and 1 more",
                 "1 with a stale reading", "2 new_cause"):  # fmt: skip
        assert word in shown.stdout
    assert json.loads(run(gateway, "status", "r-1", "--json").stdout)["decision"] == decision


@pytest.mark.parametrize(
    ("position", "wait_s", "said"), [(3, 45.2, ["3", "45 s"]), (None, None, ["not known"]), (1, 300, ["5 min"])]
)
def test_who_waits_is_told_position_and_expected_wait_where_they_are_known(gateway, position, wait_s, said):
    waiting = request(status="accepted", substation=None, position=position, expected_wait_s=wait_s)
    gateway.answers["GET", "/charge-requests/r-1"] = (200, waiting)
    shown = run(gateway, "status", "r-1").stdout

    assert "none yet" in shown
    assert all(word in shown for word in said)


def test_without_an_id_the_counts_and_the_filtered_newest_are_shown(gateway):
    gateway.answers["GET", "/substations"] = (200, load_table(requests={"accepted": 7, "charging": 1234}))
    shown = run(gateway, "status", "--state", "charging", "--substation", "north", "--limit", "5")

    assert shown.exit_code == 0
    for word in ("accepted", "7", "1,234", "r-1", "EV-1"):
        assert word in shown.stdout
    assert "/charge-requests?status=charging&substation=north&limit=5" in [asked[1] for asked in gateway.asked]
    told = json.loads(run(gateway, "status", "--json").stdout)
    assert told.keys() == {"requests", "requests_age_s", "items"}


def test_an_id_and_filters_exclude_each_other(gateway):
    assert run(gateway, "status", "r-1", "--state", "charging").exit_code == 2


def test_a_request_is_submitted_with_what_was_given_and_nothing_else(gateway):
    key = ["--key", "order-17"]
    shown = run(gateway, "submit", "--vehicle-id", "EV-7", "--power-kw", "22", "--zone", "hills", *key)

    assert shown.exit_code == 0
    for word in ("r-1", "accepted", "evenload status r-1", f"{gateway.url}/charge-requests/r-1"):
        assert word in shown.stdout
    method, target, headers, body = gateway.asked[-1]
    assert (method, target, headers["Idempotency-Key"]) == ("POST", "/charge-requests", "order-17")
    assert body == {"vehicle_id": "EV-7", "max_power_kw": 22, "zone": "hills"}


def test_a_vehicle_without_a_name_gets_one_and_is_told_as_json(gateway):
    told = json.loads(run(gateway, "submit", "--json").stdout)

    assert told["vehicle_id"].startswith("EV-")
    assert (told["request_id"], told["status"]) == ("r-1", "accepted")
    assert told["url"] == f"{gateway.url}/charge-requests/r-1"


@pytest.mark.parametrize(("end", "code"), [("completed", 0), ("expired", 1), ("failed", 1)])
def test_waiting_follows_a_request_to_its_end_and_only_completed_is_a_success(gateway, end, code):
    gateway.answers["GET", "/charge-requests/r-1"] = [(200, request()), (200, request(status=end))]
    shown = run(gateway, "submit", "--wait")
    told = run(gateway, "submit", "--wait", "--json")

    assert (shown.exit_code, told.exit_code) == (code, code)
    assert "history" in shown.stdout
    assert json.loads(told.stdout)["status"] == end
    assert len(told.stdout.splitlines()) == 1


def test_waiting_tells_the_position_and_how_long_it_may_take(gateway):
    waits = request(status="accepted", substation=None, position=3, expected_wait_s=40)
    gateway.answers["GET", "/charge-requests/r-1"] = [(200, waits), (200, request(status="completed"))]

    shown = run(gateway, "submit", "--wait").stdout

    assert "accepted, position 3, about 40 s to go" in shown


@pytest.mark.parametrize("answer", ["<html>", "[]", "{}", '{"items": [1]}', '{"items": [{"substation": "north"}]}'])
def test_what_is_no_gateway_is_told_in_one_line_with_the_cure(gateway, answer):
    gateway.answers["GET", "/substations"] = (200, answer.encode())
    for command in (["substations"], ["status"], ["top", "--once"], ["rush", "--json"]):
        shown = run(gateway, *command)

        assert (shown.exit_code, shown.stdout) == (1, "")
        assert shown.stderr == f"evenload: what answers at {gateway.url} is no Evenload gateway: correct --url\n"


def test_a_refusal_is_told_in_the_gateways_own_words_without_what_could_steer_a_terminal(gateway):
    gateway.answers["POST", "/charge-requests"] = (422, problem(422, "energy_kwh: must be\x1b[2J greater than 0"))
    shown = run(gateway, "submit", "--energy-kwh=-1")

    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr == "evenload: energy_kwh: must be\\x1b[2J greater than 0 (422)\n"


def test_an_unknown_request_is_not_found_whatever_its_id(gateway):
    for request_id in ("nobody", "../substations", "a b/ä?x=1"):
        shown = run(gateway, "status", request_id)
        assert shown.exit_code == 1
        assert "404" in shown.stderr


def test_names_from_the_gateway_are_neither_markup_nor_terminal_codes(gateway):
    hostile = request(vehicle_id="[red]\x1b]0;x\x07", substation="[/]")
    gateway.answers["GET", "/charge-requests/r-1"] = (200, hostile)
    gateway.answers["GET", "/charge-requests"] = (200, {"items": [hostile], "next_cursor": None})
    for command in (["status", "r-1"], ["status"], ["top", "--once"]):
        shown = run(gateway, *command)

        assert (shown.exit_code, "[red]\\x1b]0;x\\x07" in shown.stdout, "\x1b]" in shown.stdout) == (0, True, False)


@pytest.mark.parametrize("command", [["status"], ["status", "x"], ["substations"], ["top"], ["submit"], ["rush"]])
def test_without_a_gateway_cause_and_cure_stand_in_one_line(command):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    shown = CliRunner().invoke(app, [*command, "--url", url])

    assert (shown.exit_code, shown.stdout) == (1, "")
    assert shown.stderr == (
        f"evenload: no gateway answers at {url} (Connection refused): run `make run`, or give --url\n"
    )


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://127.0.0.1/path", "http://", "http://h?x=1"])
def test_an_address_that_is_none_is_refused(url):
    shown = CliRunner().invoke(app, ["status", "--url", url])

    assert shown.exit_code == 1
    assert "--url: an address like" in shown.stderr


def test_a_wrong_port_is_a_misconfiguration():
    shown = CliRunner(env={"EVENLOAD_GATEWAY_PORT": "70000"}).invoke(app, ["status"])

    assert shown.exit_code == 2
    assert "EVENLOAD_GATEWAY_PORT" in shown.stderr


@pytest.mark.parametrize("words", ["2x", "0s", "-1s", "", "s"])
def test_a_time_that_is_none_is_refused(words):
    assert CliRunner().invoke(app, ["break", "north", "--freeze", words]).exit_code == 2


def test_nothing_can_be_broken_where_no_stack_runs(tmp_path):
    shown = CliRunner(env={"EVENLOAD_DATA_DIR": str(tmp_path / "none")}).invoke(app, ["break", "north"])

    assert (shown.exit_code, shown.stdout) == (1, "")
    assert "no stack runs from" in shown.stderr
    assert not (tmp_path / "none").exists()


def evenload(gateway, *arguments):
    return [sys.executable, "-m", "services.cli", *arguments, "--url", gateway.url]


def test_a_reader_that_leaves_early_makes_no_trace(gateway):
    gateway.answers["GET", "/substations"] = (200, load_table(*(line(f"s{n}") for n in range(5_000))))
    for options in ([], ["--json"]):
        with subprocess.Popen(
            evenload(gateway, "substations", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr.read() == b""


def complete(gateway, words, **environment):
    done = subprocess.run(
        [sys.executable, "-c", "from services.cli.main import main; import sys; sys.argv = ['evenload']; main()"],
        env={
            "PATH": "/usr/bin:/bin", "_EVENLOAD_COMPLETE": "complete_bash", "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "EVENLOAD_GATEWAY_PORT": gateway.url.rsplit(":", maxsplit=1)[1], **environment,
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_commands_states_and_the_substations_that_the_gateway_knows(gateway):
    assert complete(gateway, "evenload su") == ["submit", "substations"]
    assert complete(gateway, "evenload status --state ch") == ["charging"]
    assert complete(gateway, "evenload status --substation n") == ["north"]
    assert complete(gateway, "evenload status --substation n", EVENLOAD_GATEWAY_PORT=str(free_ports(1)[0])) == []
    assert complete(gateway, "evenload break n", EVENLOAD_DATA_DIR="/nowhere") == []


def orders(**changes):
    kept = {"own_limit_kw": 304.0, "limit_kw": None, "until": None, "status": "Operative", "asked_at": None}
    return {"orders": {**kept, "applied_at": None, **changes}}


APPLIED = "2026-01-01T00:00:01.000Z"


def test_a_limit_is_followed_until_it_is_applied(gateway):
    gateway.answers["PUT", "/substations/north/limit"] = (202, {"substation": "north", **orders(limit_kw=50.0)})
    gateway.answers["GET", "/substations/north"] = [
        (200, line("north") | orders(limit_kw=50.0)),
        (200, line("north") | orders(limit_kw=50.0, applied_at=APPLIED)),
    ]
    shown = run(gateway, "limit", "north", "50", "--until", "2026-01-01T00:10:00Z")

    assert shown.exit_code == 0
    assert "50 kW instead of its own limit, 304 kW" in shown.stdout
    assert f"applied at {APPLIED}" in shown.stdout
    assert gateway.asked[0][3] == {"power_kw": 50.0, "until": "2026-01-01T00:10:00Z"}


def test_a_limit_is_lifted_without_waiting(gateway):
    gateway.answers["PUT", "/substations/north/limit"] = (202, {"substation": "north", **orders()})
    told = run(gateway, "limit", "north", "--lift", "--no-wait", "--json")

    assert told.exit_code == 0
    assert json.loads(told.stdout) == {"substation": "north", **orders()}
    assert [one[3] for one in gateway.asked] == [{"power_kw": None}]


def test_a_drain_ends_when_the_balancer_sees_the_substation_empty(gateway):
    drained = orders(status="Inoperative", applied_at=APPLIED)
    gateway.answers["PUT", "/substations/north/operational"] = (202, {"substation": "north", **drained})
    gateway.answers["GET", "/substations/north"] = [
        (200, line("north", sessions=0) | drained),  # a reading from before the drain
        (200, line("north", sessions=3, status="Inoperative") | drained),
        (200, line("north", sessions=0, status="Inoperative") | drained),
    ]
    shown = run(gateway, "drain", "north")

    assert shown.exit_code == 0
    assert "north is Inoperative" in shown.stdout
    assert [one[0] for one in gateway.asked] == ["PUT", "GET", "GET", "GET"]
    assert gateway.asked[0][3] == {"status": "Inoperative"}


def test_an_order_that_is_not_carried_out_in_time_says_what_is_missing(gateway):
    gateway.answers["PUT", "/substations/north/operational"] = (202, {"substation": "north", **orders()})
    gateway.answers["GET", "/substations/north"] = (200, line("north") | orders())
    shown = run(gateway, "drain", "north", "--return", "--within", "1")

    assert shown.exit_code == 1
    assert "the order stands, but not within 1 s" in shown.stderr
    assert gateway.asked[0][3] == {"status": "Operative"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["north"],
        ["north", "5", "--lift"],
        ["north", "5", "--for", "1m", "--until", "2026-01-01T00:10:00Z"],
        ["north", "--lift", "--for", "1m"],
        ["north", "-5"],
        ["north", "5", "--for", "soon"],
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_before_anything_is_sent(gateway, arguments):
    assert run(gateway, "limit", *arguments).exit_code == 2
    assert gateway.asked == []


def test_a_refused_order_is_told_in_the_gateways_words(gateway):
    gateway.answers["PUT", "/substations/north/limit"] = (422, problem(422, "power_kw: must be at most 304"))
    shown = run(gateway, "limit", "north", "9999")

    assert shown.exit_code == 1
    assert "power_kw: must be at most 304" in shown.stderr


def test_a_substation_without_a_lease_is_shown_as_lost(gateway):
    gateway.answers["GET", "/substations"] = (200, load_table(line("north", has_lease=False)))

    assert "lost" in run(gateway, "substations").stdout


def test_a_request_of_a_rush_that_had_no_answer_is_sent_again_under_the_same_key(gateway):
    accepted = (202, {"request_id": "r-1", "status": "accepted"})
    gateway.answers["POST", "/charge-requests"] = [NO_ANSWER, accepted]
    told = run(gateway, "rush", "--requests", "1", "--over", "0", "--json")

    sent = [(headers["Idempotency-Key"], body) for method, _, headers, body in gateway.asked if method == "POST"]
    assert len(sent) == 2
    assert sent[0] == sent[1]
    summary = json.loads(told.stdout)
    assert (told.exit_code, summary["accepted"], summary["refused"], summary["no_answer"]) == (0, 1, {}, {})


def test_a_request_of_a_rush_that_never_had_an_answer_is_not_called_refused(gateway, monkeypatch):
    monkeypatch.setattr("services.cli.rush.TRY_AGAIN_AFTER_S", 0.001)
    gateway.answers["POST", "/charge-requests"] = NO_ANSWER
    told = run(gateway, "rush", "--requests", "2", "--over", "0", "--json")

    summary = json.loads(told.stdout)
    assert (told.exit_code, summary["accepted"], summary["refused"]) == (1, 0, {})
    assert sum(summary["no_answer"].values()) == 2
    assert any("had no answer, and may be accepted or not" in said for said in summary["verdict"])
    keys = [headers["Idempotency-Key"] for method, _, headers, _ in gateway.asked if method == "POST"]
    assert len(keys) == 2 * TRIES
    assert len(set(keys)) == 2
