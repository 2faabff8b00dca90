"""What substations render, balancers read: both ends of a scrape, without the network between them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from balancer.readings import parse_readings
from balancer.scraper import QUERY
from services.ledger.records import Claimed
from services.metrics import ServiceMetrics
from substations.collector import SubstationCollector
from substations.substation import Substation

DESIGNED = {
    "evenload_substation_power_watts",
    "evenload_substation_demand_watts",
    "evenload_substation_limit_watts",
    "evenload_substation_floor_watts",
    "evenload_substation_rated_watts",
    "evenload_substation_utilisation_ratio",
    "evenload_substation_sessions",
    "evenload_substation_connectors",
    "evenload_substation_bays",
    "evenload_substation_bays_occupied",
    "evenload_substation_claims_total",
    "evenload_substation_fenced_total",
    "evenload_substation_lease_renewals_total",
    "evenload_substation_ends_total",
    "evenload_substation_epoch",
    "evenload_substation_snapshot_sequence",
    "evenload_substation_operative",
    "evenload_substation_energy_joules_total",
    "substation_load",
}


def substation(substation_id="north", *, sessions=0, ends=0, **changes):
    kept = {
        "rated_w": 380_000,
        "limit_w": 304_000,
        "connectors": 40,
        "bays": 10,
        "epoch": 3,
        "speed": 60.0,
        "fence_at_s": math.inf,
    }
    one = Substation(id=substation_id, ticked_at_s=0.0, **{**kept, **changes})
    for number in range(1, sessions + ends + 1):
        energy_j = 1 if number <= ends else 36_000_000
        one.start(Claimed(f"r{number}", 1, substation_id, one.epoch, number, 11_000, energy_j, 0, energy_j), 0.0)
    one.tick(0.0)
    for ending in one.tick(1.0):
        one.finish(ending, 1.0, counts=True)
    one.tick(2.0)
    return one


def scraped(*substations, names=None):
    """The text of a scrape of a whole process, as its admin port answers it."""
    registry = CollectorRegistry()
    ServiceMetrics("substations", registry)
    registry.register(SubstationCollector(substations))
    asked = registry if names is None else registry.restricted_registry(names)
    return generate_latest(asked).decode()


ASKED = [name for _, name in QUERY]


@pytest.mark.parametrize("names", [None, ASKED], ids=["everything", "what the balancer asks for"])
def test_a_balancer_reads_what_the_substation_is(names):
    one = substation(sessions=30, ends=2)

    (reading,) = parse_readings(scraped(one, names=names), 7.0).values()

    assert (reading.substation, reading.epoch, reading.sequence, reading.taken_at_s) == ("north", 3, 1, 7.0)
    assert (reading.power_w, reading.demand_w, reading.limit_w) == (one.power_w, 330_000, 304_000)
    assert 304_000 - 30 < reading.power_w <= 304_000
    assert (reading.sessions, reading.connectors) == (30, 40)
    assert (reading.claims_total, reading.ends_total, reading.operative) == (32, 2, True)


def test_a_substation_that_has_done_nothing_yet_can_be_read():
    (reading,) = parse_readings(scraped(substation(), names=ASKED), 0.0).values()

    assert (reading.power_w, reading.sessions, reading.claims_total, reading.ends_total) == (0, 0, 0, 0)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", fullmatch=True), st.integers(0, 5), st.integers(0, 3)
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda one: one[0],
    )
)
def test_whatever_a_process_hosts_arrives(hosted):
    substations = [substation(name, sessions=sessions, ends=ends) for name, sessions, ends in hosted]

    readings = parse_readings(scraped(*substations, names=ASKED), 0.0)

    assert {name: (one.sessions, one.ends_total, one.claims_total) for name, one in readings.items()} == {
        name: (sessions, ends, sessions + ends) for name, sessions, ends in hosted
    }


def test_each_scrape_is_a_snapshot_newer_than_the_one_before():
    one = substation()
    collector = SubstationCollector([one])
    registry = CollectorRegistry()
    registry.register(collector)

    def scrape():
        return parse_readings(generate_latest(registry.restricted_registry(ASKED)).decode(), 0.0)["north"]

    first, second = scrape(), scrape()
    one.epoch, one.sequence = one.epoch + 1, 0
    restarted = scrape()

    assert second.is_newer_than(first)
    assert restarted.is_newer_than(second)


def test_asking_for_some_names_brings_these_and_nothing_else():
    text = scraped(substation(sessions=1), names=ASKED)

    assert {line.split("{")[0] for line in text.splitlines() if not line.startswith("#")} == set(ASKED)


def test_the_metrics_have_the_names_of_the_design():
    text = scraped(substation(sessions=1, ends=1))
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    assert names >= DESIGNED
    assert {name for name in names if name.startswith(("evenload_substation_", "substation_"))} == DESIGNED


def test_every_metric_of_a_substation_is_labelled_with_it_and_with_no_request():
    text = scraped(substation(sessions=2, ends=1))
    lines = [line for line in text.splitlines() if re.match(r"(evenload_)?substation_", line)]

    assert lines
    for line in lines:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        assert labels.pop("substation") == "north"
        assert labels.keys() <= {"reason"}


def test_figures_that_only_people_look_at_are_right_too():
    text = scraped(substation(sessions=2, ends=1))
    shown = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if 'substation="north"' in line
    }

    assert shown['evenload_substation_utilisation_ratio{substation="north"}'] == pytest.approx(22 / 304)
    assert shown['evenload_substation_rated_watts{substation="north"}'] == 380_000
    assert shown['substation_load{substation="north"}'] == 22_000
    assert shown['evenload_substation_ends_total{reason="EnergyLimitReached",substation="north"}'] == 1
    assert shown['evenload_substation_energy_joules_total{substation="north"}'] == 1 + 2 * 11_000 * 60 * 2


def test_a_substation_without_any_power_left_is_still_told_of():
    assert float(re.search(r"utilisation_ratio{.*} (\S+)", scraped(substation(sessions=1, limit_w=0))).group(1)) == 0
