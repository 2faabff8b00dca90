"""A run's verdict: recoveries are bounded for single faults, and what broke is told with its number."""

import pytest
from harness.chaos_checker import Finding
from harness.chaos_kinds import Kind
from harness.chaos_part import Death
from harness.chaos_recovery import Recovery
from harness.chaos_report import Report
from harness.chaos_schedule import BROKER, Fault, Phase

KILL = Fault(0.0, Kind.KILL, ("balancer-1",))
CUT = Fault(0.0, Kind.CUT, ("gateway-1",))
BROKER_KILL = Fault(0.0, Kind.BROKER_KILL, (BROKER,))
SEVERAL = Fault(0.0, Kind.KILL_SEVERAL, (BROKER, "gateway-1"))


@pytest.mark.parametrize(
    ("faults", "completed_s", "kinds"),
    [
        ((KILL,), 10.0, []),
        ((KILL,), 10.1, ["slow recovery"]),
        ((BROKER_KILL,), 15.0, []),
        ((BROKER_KILL,), 15.1, ["slow recovery"]),
        ((SEVERAL,), 15.0, []),
        ((KILL, CUT), 50.0, []),
    ],
)
def test_a_single_fault_is_over_in_time_and_several_at_once_take_theirs(faults, completed_s, kinds):
    report = Report(1, 0.0)
    report.judge_recovery(Phase(0.0, faults), Recovery(completed_s, completed_s), patience=1.0)
    assert [one.kind for one in report.findings] == kinds


def test_a_slow_machine_may_be_given_patience():
    report = Report(1, 0.0)
    report.judge_recovery(Phase(0.0, (KILL,)), Recovery(29.0, 29.0), patience=3.0)
    assert report.findings == []


@pytest.mark.parametrize("faults", [(KILL,), (KILL, CUT)])
def test_what_is_not_well_at_the_end_is_a_finding_however_many_faults_there_were(faults):
    report = Report(1, 0.0)
    report.judge_recovery(Phase(0.0, faults), Recovery(2.0, None, "doctor: broker: it is gone"), patience=1.0)
    [found] = report.findings
    assert (found.kind, found.words) == ("not recovered", "doctor: broker: it is gone")


@pytest.mark.parametrize(
    ("code", "was_killed", "kinds"),
    [
        (0, False, []),
        (2, False, []),
        (-9, True, []),
        (-9, False, ["crashed"]),
        (-15, False, ["crashed"]),
        (1, False, ["crashed"]),
    ],
)
def test_a_service_that_nobody_killed_ends_with_0_or_because_its_neighbours_are_away(code, was_killed, kinds):
    report = Report(1, 0.0, deaths=[Death("gateway-1", 5.0, code, was_killed)])
    report.judge_deaths()
    assert [one.kind for one in report.findings] == kinds


def test_the_report_tells_recoveries_by_kind_and_every_finding():
    report = Report(7, 0.0)
    for completed_s in (1.0, 2.0, 4.0):
        report.judge_recovery(Phase(0.0, (KILL,)), Recovery(completed_s, 5.0), patience=1.0)
    report.judge_recovery(Phase(0.0, (KILL, CUT)), Recovery(None, None, "a completed request"), patience=1.0)
    report.log_lines = {"gateway-1": (12, "2026-11-26T00:40:01")}
    text = str(report)
    assert "seed 7: 5 faults in 4 phases" in text
    assert "kill                               3 × median 2.0, longest 4.0, well median 5.0, longest 5.0" in text
    assert "several at a time                  1 × never 1 times, well never 1 times" in text
    assert "gateway-1                        12 at 2026-11-26T00:40:01" in text
    assert text.endswith("BROKEN not recovered: 0.0 s  kill balancer-1 + cut gateway-1: a completed request")
    assert str(Report(7, 0.0)).endswith("no promise was broken")


def test_of_very_many_findings_the_number_is_told():
    report = Report(7, 0.0)
    for n in range(1_000):
        report.found.add(Finding("lost", f"id-{n}", "gone"))
    assert str(report).endswith("BROKEN 980 more like these: {'lost': 1000}")


def test_who_ends_by_itself_with_another_code_has_crashed():
    report = Report(1, 100.0)
    report.deaths = [
        Death("gateway-1", 101.0, -9, was_killed=True),
        Death("gateway-1", 102.0, 2, was_killed=False),
        Death("balancer-1", 103.0, 0, was_killed=False),
        Death("balancer-2", 104.0, 1, was_killed=False),
        Death("rabbitmq", 105.0, 1, was_killed=False),
    ]
    report.judge_deaths()
    report.count_deaths()
    assert [(one.kind, one.subject, one.words) for one in report.findings] == [
        ("crashed", "balancer-2", "ended by itself with 1, 4.0 s into the run")
    ]
    assert report.counts == {
        "gateway-1 deaths": 2,
        "balancer-1 deaths": 1,
        "balancer-2 deaths": 1,
        "rabbitmq deaths": 1,
    }
