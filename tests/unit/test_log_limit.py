"""What fails in a loop gets a line for each kind and period; nothing else is left out."""

import json
import logging
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from harness.in_process import logging_restored
from hypothesis import given
from hypothesis import strategies as st

from services.log_limit import ERROR, INFO, KINDS_MAX, PERIOD_S, WARNING, LogLimit, Share
from services.logs import KEPT, configure_logs, get_logger


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def test_the_first_line_is_written_at_once_and_the_next_of_its_kind_after_a_period_with_a_count(clock):
    limit = LogLimit(clock)

    assert [limit.admit("a") for _ in range(4)] == [0, None, None, None]
    assert limit.admit("b") == 0
    clock.now_s = PERIOD_S - 0.001
    assert limit.admit("a") is None
    clock.now_s = PERIOD_S
    assert [limit.admit("a"), limit.admit("a")] == [4, None]
    clock.now_s = 10 * PERIOD_S
    assert [limit.admit("a"), limit.admit("b")] == [1, 0]


def test_more_lines_are_admitted_where_more_are_allowed(clock):
    limit = LogLimit(clock)

    assert [limit.admit("a", Share(3, 50)) for _ in range(5)] == [0, 0, 0, None, None]


@given(lines=st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")), max_size=60))
def test_every_line_is_written_or_counted_by_a_later_one_of_its_kind(lines):
    clock = Clock()
    limit, told, written_at_s = LogLimit(clock), {"a": 0, "b": 0}, {"a": [], "b": []}
    for pause_s, kind in lines:
        clock.now_s += pause_s
        suppressed = limit.admit(kind)
        if suppressed is not None:
            told[kind] += 1 + suppressed
            written_at_s[kind].append(clock.now_s)
    clock.now_s += PERIOD_S
    for kind, count in told.items():
        assert count + (limit.admit(kind) or 0) == sum(one == kind for _, one in lines)
        times = written_at_s[kind]
        assert all(later - sooner >= PERIOD_S for sooner, later in pairwise(times))


def test_of_many_kinds_no_more_are_written_in_a_second_than_people_can_look_at(clock):
    limit, written = LogLimit(clock), Counter()
    for number in range(40_000):
        clock.now_s = number / 10_000
        written[int(clock.now_s)] += limit.admit(number) is not None

    assert written == dict.fromkeys(range(4), ERROR.second_max)


def test_endless_kinds_that_come_slowly_are_all_written(clock):
    limit = LogLimit(clock)
    for number in range(3 * KINDS_MAX):
        clock.now_s = number / ERROR.second_max
        assert limit.admit(number) == 0


@pytest.fixture
def lines(capfd):
    """Runs something with a logger, and returns the lines that a service would have written."""

    def run(work):
        with logging_restored():
            configure_logs("gateway", "gateway-1", "INFO", "json")
            work(get_logger("tests.flood"))
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    return run


@pytest.mark.parametrize("level", ["warning", "error"])
def test_a_flood_of_one_event_becomes_one_line(lines, level):
    def flood(log):
        for number in range(1_000):
            getattr(log, level)("request_failed", path=f"/{number}", exc_info=RuntimeError(str(number)))

    [line] = lines(flood)
    assert (line["event"], line["path"], "RuntimeError: 0" in line["exception"]) == ("request_failed", "/0", True)


def test_the_same_fault_in_another_place_and_another_fault_in_the_same_are_written(lines):
    def flood(log):
        for _ in range(3):
            log.warning("lease_lost", substation="north")
            log.warning("lease_lost", substation="south")
            log.error("request_failed", exc_info=KeyError("x"))
            log.error("request_failed", exc_info=ValueError("x"))

    assert [(line["event"], line.get("substation")) for line in lines(flood)] == [
        ("lease_lost", "north"), ("lease_lost", "south"), ("request_failed", None), ("request_failed", None),
    ]  # fmt: skip


@pytest.mark.parametrize("event", sorted(KEPT))
def test_no_line_that_is_evidence_or_comes_once_in_a_life_is_left_out(lines, event):
    def flood(log):
        for number in range(200):
            log.error(event, promise="one end", subject=f"r-{number}")

    assert [line["subject"] for line in lines(flood)] == [f"r-{number}" for number in range(200)]


def test_what_was_done_is_written_line_by_line_until_it_is_a_flood(lines):
    def flood(log):
        for number in range(1_000):
            log.info("requests_claimed", requests=number)

    assert [line["requests"] for line in lines(flood)] == list(range(INFO.second_max))


def test_a_flood_of_lines_leaves_room_for_graver_ones_of_the_same_second(clock):
    limit = LogLimit(clock)

    def written(level, share):
        return sum(limit.admit((level, number), share) is not None for number in range(1_000))

    assert [written("info", INFO), written("warning", WARNING), written("error", ERROR)] == [30, 10, 10]


def test_of_one_event_fifty_lines_that_tell_what_was_done_are_written_in_a_period(clock):
    limit, written = LogLimit(clock), 0
    for number in range(100):
        clock.now_s = number / 20
        written += limit.admit("requests_claimed", INFO) is not None

    assert written == 50


@pytest.mark.parametrize("quiet", ["debug", "info", "warning"])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_fault_that_is_told_once_is_written_in_the_second_of_a_flood(lines, quiet, foreign):
    def flood(log):
        logging.getLogger().setLevel("DEBUG")
        for number in range(1_000):
            if foreign:
                getattr(logging.getLogger(f"library.{number}"), quiet)("something")
            else:
                getattr(log, quiet)(f"event_{number}")
        log.error("ledger_lost", cause="locked")

    assert lines(flood)[-1]["event"] == "ledger_lost"


def test_a_librarys_flood_becomes_one_line_too_whatever_its_arguments(lines):
    def flood(_log):
        for number in range(1_000):
            logging.getLogger("some.library").warning("attempt %d failed", number)

    assert [line["event"] for line in lines(flood)] == ["attempt 0 failed"]


def test_lines_that_a_full_disk_does_not_take_are_lost_without_a_trace():
    program = (
        "from services.logs import configure_logs, get_logger\n"
        "configure_logs('gateway', 'gateway-1', 'INFO', 'json')\n"
        "for _ in range(3): get_logger('tests').info('something_done')\n"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, check=False)

    assert b"Logging error" not in done.stderr
    assert b"something_done" not in done.stderr
