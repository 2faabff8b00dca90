"""Log lines are counted by the second of their own times, while they are written."""

import json

from harness import chaos_log_rate
from harness.chaos_log_rate import LINES_MAX, LogRate


def write(path, second, times, event="request_dispatched"):
    line = {"event": event, "timestamp": f"2026-11-26T00:40:{second:02d}.123456Z"}
    with path.open("a") as file:
        file.write((json.dumps(line) + "\n") * times)


def test_the_second_with_the_most_lines_is_told_with_what_was_logged_then(tmp_path):
    rate = LogRate(tmp_path, ("gateway-1", "balancer-1"), keep=True)
    rate.count()
    log = tmp_path / "gateway-1.log"
    write(log, 1, LINES_MAX - 20)
    rate.count()
    write(log, 1, 20)
    write(log, 2, 3)
    rate.count()
    assert rate.most == {"gateway-1": (LINES_MAX, "2026-11-26T00:40:01"), "balancer-1": (0, "")}
    assert rate.findings() == []
    write(log, 3, LINES_MAX + 1, "accept_failed")
    rate.count()
    [found] = rate.findings()
    assert (
        str(found)
        == "log flood: gateway-1: 51 lines at 2026-11-26T00:40:03, at most 50 a second are sound: accept_failed"
    )


def test_a_trace_counts_to_the_second_before_it_and_half_a_line_counts_once(tmp_path):
    rate, log = LogRate(tmp_path, ("one",), keep=True), tmp_path / "one.log"
    write(log, 1, 1)
    with log.open("a") as file:
        file.write("Traceback (most recent call last):\n" * LINES_MAX + "  File")
    rate.count()
    assert rate.most["one"][0] == LINES_MAX + 1
    with log.open("a") as file:
        file.write(" x\n")
    rate.count()
    assert rate.most["one"][0] == LINES_MAX + 2


def test_a_long_log_that_was_counted_is_emptied_and_its_writer_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_log_rate, "LONGEST_BYTES", 500)
    log = tmp_path / "one.log"
    kept, emptied = LogRate(tmp_path, ("one",), keep=True), LogRate(tmp_path, ("one",), keep=False)
    with log.open("a", buffering=1) as writer:
        for second in range(10, 20):
            writer.write(f'{{"timestamp": "2026-11-26T00:40:{second}Z", "event": "{"x" * 100}"}}\n' * second)
            kept.count()
            emptied.count()
            assert log.stat().st_size == 0
            kept = LogRate(tmp_path, ("one",), keep=True)
    assert emptied.most["one"] == (19, "2026-11-26T00:40:19")
