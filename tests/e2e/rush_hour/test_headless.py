"""Headless locust against a running stack: what it records, and when it is not content."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from harness.fake_gateway import NO_ANSWER, fake_gateway, line, load_table, problem, request
from harness.preloaded_locust import preloaded_locust
from harness.stack import ROOT, until

from services.local.ports import free_ports

LOCUST = str(Path(sys.executable).parent / "locust")
FOLDER = ROOT / "locustfiles"
TO_CHARGING = "accepted → charging"
TO_END = "accepted → ended"


@contextmanager
def locust(locustfile, *arguments, **environment):
    """A headless locust; what it says comes on one stream."""
    # A shell that runs the tests in its background makes all their children ignore Ctrl-C.
    command = [
        "env",
        "--default-signal=INT",
        LOCUST,
        "-f",
        str(FOLDER / locustfile),
        "--headless",
        "--only-summary",
        *map(str, arguments),
    ]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    process = subprocess.Popen(
        command,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def play(locustfile, *arguments, **environment):
    """Exit code and what was said."""
    with locust(locustfile, *arguments, **environment) as process:
        said, _ = process.communicate(timeout=240)
        return process.returncode, said


def test_a_rush_hour_is_followed_to_every_end(stack, tmp_path):
    reports = ["--csv", tmp_path / "rush", "--json-file", tmp_path / "rush", "--html", tmp_path / "rush.html"]
    code, said = play(
        "rush_hour.py", "--vehicles", 600, "--rush-speed", 3600, "--longest-minutes", 2, "--host", stack.url, *reports
    )
    assert code == 0, said

    with (tmp_path / "rush_stats.csv").open() as file:
        recorded = {row["Name"]: row for row in csv.DictReader(file)}
    sent = int(recorded["/charge-requests"]["Request Count"])
    assert sent >= 500
    assert recorded[TO_CHARGING]["Type"] == recorded[TO_END]["Type"] == "E2E"
    assert {int(row["Request Count"]) for row in recorded.values()} == {sent}
    assert {int(row["Failure Count"]) for row in recorded.values()} == {0}
    # Ends come after starts, and the sum is that of the HTTP requests alone.
    assert float(recorded[TO_CHARGING]["Median Response Time"]) < float(recorded[TO_END]["Median Response Time"])
    assert recorded["Aggregated"]["Max Response Time"] == recorded["/charge-requests"]["Max Response Time"]
    entries = json.loads((tmp_path / "rush.json").read_text())
    counts = {entry["name"]: entry["num_requests"] for entry in entries}
    assert counts == {"/charge-requests": sent, TO_CHARGING: sent, TO_END: sent}

    report = (tmp_path / "rush.html").read_text()
    hosted = {item["substation"] for item in stack.get("/substations")[1]["items"]}
    charged = {name: int(count) for name, count in re.findall(r"<td>([a-z]+)</td><td>(\d+)</td>", report)}
    assert set(charged) == hosted
    assert sum(charged.values()) == sent
    max_over_mean = f"{max(charged.values()) * len(hosted) / sent:.2f}"
    assert f"<td>all (max ÷ mean)</td><td>{sent}</td><td>{max_over_mean}</td>" in report
    assert re.search(rf"all \(max ÷ mean\) +{sent} +{max_over_mean}", said)


def test_an_accepted_request_that_does_not_end_in_time_is_a_failure(stack):
    # An hour of session time is a minute here.
    late = ["--longest-minutes", 60, "--end-within", 1, "--host", stack.url]
    code, said = play("spike.py", "--vehicles", 60, "--spike-seconds", 3, *late)
    assert code == 1, said
    assert re.search(r"\d+ accepted requests did not end in time", said)
    assert re.search(rf"\d+ +E2E {TO_END}: was not seen to end in time", said)


def test_requests_that_cannot_be_read_hold_up_none_of_the_others():
    unreadable = {
        "not-found": (404, problem(404, "there is no such request")),
        "broken": (500, problem(500, "")),
        "no-json": (200, b"<html>"),
        "connection-lost": NO_ANSWER,
    }
    others = ["r-1", "r-2"]
    ids = [*unreadable, *others]
    with fake_gateway() as gateway:
        gateway.answers = {
            ("GET", "/substations"): (200, load_table()),
            ("POST", "/charge-requests"): [(202, {"request_id": one}) for one in ids],
            ("GET", "/charge-requests"): (200, {"items": [{"request_id": one} for one in ids], "next_cursor": None}),
            **{("GET", f"/charge-requests/{one}"): answer for one, answer in unreadable.items()},
            **{("GET", f"/charge-requests/{one}"): (200, request(one, "completed")) for one in others},
        }
        code, said = play("spike.py", "--vehicles", 60, "--spike-seconds", 2, "--end-within", 4, "--host", gateway.url)
        asked = [path for _, path, *_ in gateway.asked]

    assert code == 1, said
    assert re.search(rf"\b4 +E2E {TO_END}: was not seen to end in time", said), said
    assert "4 accepted requests did not end in time" in said
    for one in unreadable:
        most = 3 if one == "connection-lost" else 1  # locust's client connects anew by itself
        assert 1 <= asked.count(f"/charge-requests/{one}") <= most, one


def test_a_run_in_which_nothing_was_recorded_has_failed(stack):
    with locust("steady.py", "--vehicles", 1, "--steady-seconds", 86_400, "--host", stack.url) as process:
        next(line for line in process.stdout if "All users spawned" in line)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "nothing was recorded" in said


def test_where_no_gateway_answers_locust_says_so_and_ends(port):
    code, said = play("rush_hour.py", "--host", f"http://127.0.0.1:{port}")
    assert code == 1
    assert f"no gateway answers at http://127.0.0.1:{port}" in said


@pytest.fixture
def processes():
    """Options for a master and two workers, on a port of their own."""
    port = free_ports(1)[0]
    return ["--processes", 2, "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port]


def left(options):
    """Who runs with these options; what has ended and is not collected yet has none."""
    words = [str(one) for one in options]
    return [one.pid for one in psutil.process_iter(["cmdline"]) if words == (one.info["cmdline"] or [])[-len(words) :]]


@pytest.fixture
def ended_at_once():
    """A gateway at which each request charges and ends at once, by turns at two substations."""
    ids = [f"r-{number}" for number in range(500)]
    with fake_gateway() as one:
        one.answers = {
            ("GET", "/substations"): (200, load_table(line("north"), line("south"))),
            ("POST", "/charge-requests"): [(202, {"request_id": one}) for one in ids],
            ("GET", "/charge-requests"): (200, {"items": [{"request_id": one} for one in ids], "next_cursor": None}),
            **{("GET", f"/charge-requests/{one}"): (200, request(one, "completed")) for one in ids},
        }
        yield one


def test_a_rush_in_several_processes_is_followed_and_reported_as_a_whole(ended_at_once, processes, tmp_path):
    report = ["--html", tmp_path / "rush.html", "--json-file", tmp_path / "rush"]
    options = ["--vehicles", 120, "--steady-seconds", 2, *report, "--host", ended_at_once.url, *processes]
    code, said = play("steady.py", *options, PYTHONIOENCODING="ascii")

    assert code == 0, said
    assert "2 workers connected" in said
    assert r"all (max \xf7 mean)" in said
    assert "Traceback" not in said
    sent = sum(method == "POST" for method, *_ in ended_at_once.asked)
    assert sent > 0
    entries = json.loads((tmp_path / "rush.json").read_text())
    counts = {entry["name"]: entry["num_requests"] for entry in entries}
    assert counts == {"/charge-requests": sent, TO_CHARGING: sent, TO_END: sent}
    assert f"<td>north</td><td>{sent}</td><td>2.00</td>" in (tmp_path / "rush.html").read_text()
    assert left(processes) == []


def test_no_worker_outlives_its_master(ended_at_once, processes):
    options = ["--steady-seconds", 600, "--host", ended_at_once.url, *processes]
    with locust("steady.py", *options) as process:
        next(line for line in process.stdout if "All users spawned" in line)
        assert len(left(processes)) == 3
        process.kill()
        until(lambda: not left(processes), "the end of the workers")

    # Wrong options are seen when the workers are there already.
    code, said = play(
        "steady.py", "--vehicles", 1_000_000, "--steady-seconds", 1, "--host", ended_at_once.url, *processes
    )
    assert (code, "more than 1,000: take fewer vehicles" in said, left(processes)) == (2, True, []), said


@pytest.fixture(scope="module")
def locust_once():
    with preloaded_locust() as play:
        yield play


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--vehicles", "0"], "argument --vehicles: 0 does not lie between 1 and 1,000,000"),
        (["--vehicles", "1.5"], "argument --vehicles: '1.5' is no whole number"),
        (["--rush-speed", "nan"], "argument --rush-speed: nan does not lie between 1 and 18,000"),
        (["--rush-from", "9", "--rush-to", "9"], "the hours end (9) before they begin (9)"),
        (["--vehicles", "100000"], "vehicles per second where it is busiest, more than 1,000"),
        (["--rush-from", "1", "--rush-to", "3", "WorkplaceDrivers"], "nobody arrives between 1 and 3 o’clock"),
    ],
)
def test_wrong_options_are_told(locust_once, arguments, fault):
    code, said = locust_once("-f", str(FOLDER / "rush_hour.py"), "--headless", "--only-summary", *arguments)
    assert code == 2, said
    assert fault in said


@pytest.mark.parametrize("locustfile", [".", "rush_hour.py", "steady.py", "spike.py"])
def test_locust_finds_the_drivers_and_nothing_else(locust_once, locustfile):
    """From any folder, as in a container to which only this one is mounted."""
    code, said = locust_once("-f", str(FOLDER / locustfile), "--list")
    assert code == 0, said
    found = said.partition("Available Users:")[2].split()
    assert sorted(found) == ["PrivateDrivers", "PublicDrivers", "WorkplaceDrivers"]
