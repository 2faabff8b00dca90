"""A run's verdict: recoveries are bounded for single faults, and what broke is told with its number."""

import pytest
from harness.chaos_checker import Finding
from harness.chaos_kinds import Kind
from harness.chaos_part import Death
from harness.chaos_recovery import Recovery
from harness.chaos_report import Report
from harness.chaos_schedule import BROKER, SERVICES, Fault, Phase

KILL = Fault(0.0, Kind.KILL, ("balancer-1",))
CUT = Fault(0.0, Kind.CUT, ("gateway-1",))
BROKER_KILL = Fault(0.0, Kind.BROKER_KILL, (BROKER,))
ALARM = Fault(0.0, Kind.ALARM, (BROKER,), 1.0)
KILL_ALL = Fault(0.0, Kind.KILL_ALL, (BROKER, *SERVICES))
SEVERAL = Fault(0.0, Kind.KILL_SEVERAL, (BROKER, "gateway-1"))


@pytest.mark.parametrize(
    ("faults", "completed_s", "kinds"),
    [
        ((KILL,), 10.0, []),
        ((KILL,), 10.1, ["slow recovery"]),
        ((BROKER_KILL,), 15.0, []),
        ((BROKER_KILL,), 15.1, ["slow recovery"]),
        ((SEVERAL,), 15.0, []),
        ((KILL_ALL,), 15.1, ["slow recovery"]),
        ((ALARM,), 10.1, ["slow recovery"]),
        ((KILL, CUT), 50.0, []),
    ],
)
def test_a_single_fault_is_over_in_time_and_several_at_once_take_theirs(faults, completed_s, kinds):
    report = Report(1, 0.0)
    report.judge_recovery(Phase(0.0, faults), Recovery(completed_s, "north", 29.0), patience=1.0)
    assert [one.kind for one in report.findings] == kinds


def test_a_slow_machine_may_be_given_patience():
    report = Report(1, 0.0)
    report.judge_recovery(Phase(0.0, (KILL,)), Recovery(29.0, "north", 89.0), patience=3.0)
    assert report.findings == []


def test_after_a_single_fault_the_doctor_must_be_content_in_time_too():
    report = Report(1, 0.0)
    for faults in ((BROKER_KILL,), (KILL, CUT)):
        recovery = Recovery(2.0, "north", 30.1, last="doctor: broker: it is gone")
        report.judge_recovery(Phase(0.0, faults), recovery, patience=1.0)
    [found] = report.findings
    assert found.words == "30.1 s until all was well (last doctor: broker: it is gone), 30 s are sound"


@pytest.mark.parametrize("faults", [(KILL,), (KILL, CUT)])
def test_what_is_not_well_at_the_end_is_a_finding_however_many_faults_there_were(faults):
    report = Report(1, 0.0)
    report.judge_recovery(Phase(0.0, faults), Recovery(2.0, "east", None, "doctor: broker: it is gone"), patience=1.0)
    [found] = report.findings
    assert (found.kind, found.words) == ("not recovered", "doctor: broker: it is gone")


@pytest.mark.parametrize(
    ("code", "was_killed", "was_told", "kinds"),
    [
        (0, False, True, []),
        (-9, True, False, []),
        (-9, True, True, []),
        (0, False, False, ["crashed"]),
        (2, False, False, ["crashed"]),
        (2, False, True, ["crashed"]),
        (1, True, False, ["crashed"]),
        (-9, False, False, ["crashed"]),
        (-9, False, True, ["crashed"]),
        (-15, False, True, ["crashed"]),
        (1, False, False, ["crashed"]),
    ],
)
def test_a_service_ends_only_when_it_is_killed_or_with_0_when_it_is_told_to(code, was_killed, was_told, kinds):
    report = Report(1, 0.0, deaths=[Death("gateway-1", 5.0, code, was_killed, was_told)])
    report.judge_deaths()
    assert [one.kind for one in report.findings] == kinds


@pytest.mark.parametrize(
    ("at_s", "code", "kinds"),
    [(11.9, 2, ["crashed"]), (12.0, 2, []), (15.0, 2, []), (15.0, 0, ["crashed"]), (21.0, 2, ["crashed"])],
)
def test_a_service_may_refuse_to_start_while_its_ledger_is_away(at_s, code, kinds):
    report = Report(1, 0.0, deaths=[Death("balancer-2", at_s, code)], ledger_away=[(12.0, 15.5)])
    report.judge_deaths()
    assert [one.kind for one in report.findings] == kinds


def test_a_kind_of_fault_that_never_broke_anything_is_a_finding():
    report = Report(1, 0.0)
    report.effects[Kind.CUT] += ["", "2 connections were reset"]
    report.effects[Kind.ALARM] += ["", ""]
    report.judge_effects()
    assert [str(one) for one in report.findings] == ["no effect: alarm: none of 2 faults was seen to break anything"]
    assert "cut                              2, 1 with an effect" in str(report)


@pytest.mark.parametrize(
    ("over_s", "is_over", "kinds"), [(60.0, False, []), (60.0, True, ["no load"]), (40.0, True, [])]
)
def test_the_last_faults_are_done_under_load_unless_the_load_was_asked_to_end_before(over_s, is_over, kinds):
    report = Report(1, 0.0)
    report.judge_load(Phase(50.0, (KILL,)), over_s, is_over=is_over)
    assert [one.kind for one in report.findings] == kinds


def test_a_failure_of_the_judge_is_a_finding_and_the_run_goes_on():
    report = Report(1, 0.0)
    with report.failures_of("recovery"):
        raise KeyError("client_properties")
    assert [str(one) for one in report.findings] == ["judge failed: recovery: KeyError('client_properties')"]


def test_the_report_tells_recoveries_by_kind_and_every_finding():
    report = Report(7, 0.0)
    for completed_s in (1.0, 2.0, 4.0):
        report.judge_recovery(Phase(0.0, (KILL,)), Recovery(completed_s, "north", 5.0), patience=1.0)
    report.judge_recovery(Phase(0.0, (KILL, CUT)), Recovery(missing="a completed request"), patience=1.0)
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


def test_the_words_of_a_crash_tell_what_the_process_was_sent():
    report = Report(1, 100.0)
    report.deaths = [
        Death("gateway-1", 101.0, -9, was_killed=True),
        Death("gateway-1", 102.0, 0, was_told=True),
        Death("balancer-1", 103.0, 2, was_told=True),
        Death("balancer-2", 104.0, 1),
        Death("rabbitmq", 105.0, 1),
    ]
    report.judge_deaths()
    report.count_deaths()
    assert [(one.kind, one.subject, one.words) for one in report.findings] == [
        ("crashed", "balancer-1", "ended after SIGTERM with 2, 3.0 s into the run"),
        ("crashed", "balancer-2", "ended by itself with 1, 4.0 s into the run"),
    ]
    assert report.counts == {
        "gateway-1 deaths": 2,
        "balancer-1 deaths": 1,
        "balancer-2 deaths": 1,
        "rabbitmq deaths": 1,
    }
