"""The pure parts of the locustfiles: arrivals, what is asked for, and the distribution."""

import math
import random

import pytest
from _arrivals import VEHICLES_PER_USER_S, Arrivals, Stage, played_hours, shared_stage
from _distribution import Distribution, with_section
from _profiles import PRIVATE, PUBLIC, WORKPLACE, draw_energy_kwh, wish

PROFILES = {one.name: one.arrivals_percent for one in (PRIVATE, PUBLIC, WORKPLACE)}


def arrived(plan, kind, rng):
    """When one kind's vehicles arrive, each user on its own, and users that come and go with the stages."""
    moments = []
    begin = 0.0
    for stage in plan.stages:
        end = begin + stage.lasts_s
        for _user in range(plan.users_of_each_kind(begin)):
            at = begin
            while (at := plan.next_of_one_user(kind, at, rng.expovariate(1.0))) < end:
                moments.append(at)
        begin = end
    return moments


@pytest.mark.parametrize("profile", [PRIVATE, PUBLIC, WORKPLACE], ids=lambda one: one.name)
def test_a_weekday_is_whole(profile):
    assert len(profile.arrivals_percent) == 24
    assert sum(profile.arrivals_percent) == pytest.approx(100, abs=0.6)


def test_the_rush_is_played_in_a_minute_with_all_its_vehicles():
    plan = played_hours(PROFILES, 1200, 16, 21, 300)
    assert plan.lasts_s == pytest.approx(60)
    assert sum(sum(stage.per_s.values()) * stage.lasts_s for stage in plan.stages) == pytest.approx(1200)
    busiest = max(plan.stages, key=lambda stage: stage.per_s["private"])
    assert plan.stages.index(busiest) == 2
    assert busiest.per_s["private"] / busiest.per_s["public"] == pytest.approx(17.0 / 10.9)


def test_users_follow_the_hours_and_none_is_overloaded():
    plan = played_hours(PROFILES, 1200, 16, 21, 300)
    users = [plan.users_of_each_kind(12 * hour + 6) for hour in range(5)]
    assert users == [6, 13, 18, 12, 10]
    for stage, count in zip(plan.stages, users, strict=True):
        assert max(stage.per_s.values()) / count <= VEHICLES_PER_USER_S
    assert plan.users_of_each_kind(60) == 0


def test_arrivals_come_at_the_rate_of_their_hour_and_kind():
    plan = played_hours(PROFILES, 60_000, 0, 24, 144)
    rng = random.Random(1)
    for kind, percent in PROFILES.items():
        moments = arrived(plan, kind, rng)
        for hour, share in enumerate(percent):
            expected = 60_000 * share / sum(map(sum, PROFILES.values()))
            seen = sum(hour <= at / 25 < hour + 1 for at in moments)
            assert abs(seen - expected) <= 5 * math.sqrt(expected), (kind, hour)


def test_a_user_waits_through_an_hour_in_which_nobody_arrives():
    plan = Arrivals([Stage(10, {"a": 1}), Stage(10, {"a": 0}), Stage(10, {"a": 1})])
    assert plan.next_of_one_user("a", 8, 1) == 9
    assert plan.next_of_one_user("a", 8, 3) == 21
    assert plan.next_of_one_user("a", 8, 13) == math.inf


def test_what_cannot_be_played_is_refused():
    with pytest.raises(ValueError, match="end \\(8\\) before they begin \\(8\\)"):
        played_hours(PROFILES, 100, 8, 8, 300)
    with pytest.raises(ValueError, match="nobody arrives between 0 and 4"):
        played_hours({"workplace": WORKPLACE.arrivals_percent}, 100, 0, 4, 300)
    with pytest.raises(ValueError, match="2,000 vehicles per second where it is busiest, more than 1,000"):
        Arrivals([shared_stage(["a", "b"], 20_000, 10)])


def test_kinds_share_a_steady_rate():
    assert shared_stage(["a", "b"], 30, 10) == Stage(10, {"a": 1.5, "b": 1.5})


@pytest.mark.parametrize(
    ("share", "energy_kwh"), [(0, 1), (0.25, 4.2), (0.375, 5.7), (0.5, 7.2), (0.95, 41.6), (1, 60)]
)
def test_energies_follow_the_quantiles(share, energy_kwh):
    assert draw_energy_kwh(PUBLIC, share) == pytest.approx(energy_kwh)


def test_a_vehicle_asks_for_no_more_than_it_gets_in_its_time():
    assert wish(PRIVATE, 0.5, 11, 60) == {"energy_kwh": 11, "max_power_kw": 11}
    assert wish(PRIVATE, 0.5, 22, 60) == {"energy_kwh": 19.4, "max_power_kw": 22}
    assert wish(PRIVATE, 0.5, 3.7, 0.1)["energy_kwh"] == 0.01


def test_the_distribution_knows_who_got_nothing():
    distribution = Distribution(["north", "east", "south", "west"])
    assert distribution.max_over_mean is None
    for substation in ["north"] * 3 + ["east"] * 2 + ["south"]:
        distribution.count(substation)
    assert distribution.max_over_mean == 2.0
    assert [(row["substation"], row["requests"], row["ratio"]) for row in distribution.rows()] == [
        ("east", 2, "1.33"),
        ("north", 3, "2.00"),
        ("south", 1, "0.67"),
        ("west", 0, "0.00"),
        ("all (max ÷ mean)", 6, "2.00"),
    ]
    distribution.reset()
    assert [row["requests"] for row in distribution.rows()] == [0] * 5


def test_the_report_gets_its_section_and_no_markup_from_outside():
    distribution = Distribution(["<b>"])
    distribution.count("<b>")
    report = with_section("<html><body>all</body></html>", distribution)
    assert report.startswith("<html><body>all<section")
    assert report.endswith("</section></body></html>")
    assert "<td>&lt;b&gt;</td><td>1</td><td>1.00</td>" in report
