"""A whole stack is broken at random under load, and an outside checker finds every promise kept."""

import pytest
from harness.chaos import ledger_for
from harness.chaos_kinds import kinds_for
from harness.chaos_run import Options, chaos
from harness.chaos_schedule import coming_and_going, length_s, load_s, schedule
from harness.stack import marked

SEED = 38
PATIENCE = 4.0
"""Other tests run beside these."""


@pytest.mark.timeout(420)
@pytest.mark.parametrize("name", ["sqlite", "postgres"])
async def test_nothing_is_lost_doubled_or_over_delivered_while_everything_is_broken_at_random(tmp_path, name):
    with ledger_for(name, tmp_path, requests=700) as ledger:
        kinds, _ = kinds_for(name, has_small_disk=ledger.disk is not None)
        phases = schedule(SEED, 12, kinds, longest_s=5)
        over_s = max(60, load_s(phases))
        report = await chaos(tmp_path, Options(700, phases, SEED, over_s, settle_s=90, patience=PATIENCE), ledger)
    print(report)
    assert report.findings == []
    assert report.counts["requests"] == 700 + report.counts["probes"] == 700 + 5 * len(phases)
    assert report.counts["interruptions"] > 0, "a run that interrupts nobody shows nothing"
    assert not marked(tmp_path)


@pytest.mark.timeout(300)
async def test_failure_26_a_process_that_comes_and_goes_under_load_leaves_in_order_each_time(tmp_path):
    """Its substations' sessions go on elsewhere, or when it is back; `leave` finds an end that is late or not 0."""
    times = 4
    # So long that it has started, on a slow machine too, before it is told to leave again.
    phases = coming_and_going("substations-2", times, every_s=14)
    options = Options(400, phases, SEED, max(60, length_s(phases)), settle_s=60, patience=PATIENCE)
    with ledger_for("sqlite", tmp_path, requests=400) as ledger:
        report = await chaos(tmp_path, options, ledger)
    print(report)
    assert report.findings == []
    assert [(one.name, one.code) for one in report.deaths].count(("substations-2", 0)) == times + 1
    assert report.counts.get("interruptions", 0) == 0, "who leaves in order costs nobody a grant"
    assert not marked(tmp_path)
