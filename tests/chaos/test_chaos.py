"""A whole stack is broken at random under load, and an outside checker finds every promise kept."""

import pytest
from harness.chaos import Options, chaos
from harness.chaos_schedule import coming_and_going, schedule
from harness.chaos_stack import SERVICES
from harness.stack import marked

SEED = 34


@pytest.mark.timeout(300)
async def test_nothing_is_lost_doubled_or_over_delivered_while_everything_is_broken_at_random(tmp_path):
    faults = schedule(SEED, 15, 45, SERVICES, longest_s=8)
    report = await chaos(tmp_path, Options(1_000, faults, SEED, over_s=45, settle_s=90))
    print(report)
    assert report.findings == []
    assert report.counts["requests"] == 1_000
    assert report.counts["rabbitmq deaths"] >= 3, "two kills, and its end"
    assert report.counts["interruptions"] > 0, "a run that interrupts nobody shows nothing"
    assert not marked(tmp_path)


@pytest.mark.timeout(300)
async def test_failure_26_a_process_that_comes_and_goes_under_load_leaves_in_order_each_time(tmp_path):
    """Its substations' sessions go on elsewhere, or when it is back; `leave` finds an end that is late or not 0."""
    times = 4
    # So long that it has started, on a slow machine too, before it is told to leave again.
    faults = coming_and_going("substations-2", times, every_s=14)
    report = await chaos(tmp_path, Options(400, faults, SEED, over_s=56, settle_s=60))
    print(report)
    assert report.findings == []
    assert [(one.name, one.code) for one in report.deaths].count(("substations-2", 0)) == times + 1
    assert report.counts["interruptions"] == 0, "who leaves in order costs nobody a grant"
    assert not marked(tmp_path)
