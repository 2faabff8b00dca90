import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from balancer.readings import METRIC_NAMES, PREFIX, BadReading, Reading, parse_readings

SOUND = {
    "power_watts": 90_500.5,
    "demand_watts": 100_000,
    "limit_watts": 304_000,
    "floor_watts": 1_380,
    "sessions": 10,
    "connectors": 40,
    "bays": 10,
    "claims_total": 12,
    "ends_total": 2,
    "epoch": 3,
    "snapshot_sequence": 77,
    "operative": 1,
}


def exposition(substation="north", **changes):
    """Text as the Prometheus client library writes it, one family after another; None leaves a family out."""
    lines = []
    for name, value in {**SOUND, **changes}.items():
        if value is None:
            continue
        is_counter = name.endswith("_total")
        lines += [
            f"# HELP {PREFIX}{name} Told for people.",
            f"# TYPE {PREFIX}{name} {'counter' if is_counter else 'gauge'}",
        ]
        if name == "ends_total":
            lines.append(f'{PREFIX}{name}{{substation="{substation}",reason="EnergyLimitReached"}} {value}')
        else:
            lines.append(f'{PREFIX}{name}{{substation="{substation}"}} {value}')
    return "\n".join(lines) + "\n"


def test_a_scrape_becomes_a_reading():
    assert parse_readings(exposition(), 5.5) == {
        "north": Reading(
            substation="north",
            epoch=3,
            sequence=77,
            power_w=90_500.5,
            demand_w=100_000.0,
            limit_w=304_000.0,
            floor_w=1_380.0,
            sessions=10,
            connectors=40,
            bays=10,
            claims_total=12,
            ends_total=2,
            operative=True,
            taken_at_s=5.5,
        )
    }


def test_a_process_that_hosts_several_substations_brings_a_reading_of_each():
    text = exposition("north", sessions=1) + exposition("south-2", sessions=2, operative=0)

    readings = parse_readings(text, 0.0)

    assert {name: (one.sessions, one.operative) for name, one in readings.items()} == {
        "north": (1, True),
        "south-2": (2, False),
    }


def test_ends_are_summed_over_their_reasons():
    more = "".join(f'{PREFIX}ends_total{{substation="north",reason="{reason}"}} 5\n' for reason in ("Remote", "Power"))

    assert parse_readings(exposition() + more, 0.0)["north"].ends_total == 12


def test_other_metrics_of_the_same_process_are_passed_over():
    registry = CollectorRegistry()
    Gauge("evenload_build_info", "About.", ["version"], registry=registry).labels('1"\n\\').set(1)
    Gauge("anything", "Not finite, and nobody's business.", registry=registry).set(float("nan"))
    noise = generate_latest(registry).decode()

    assert parse_readings(noise + exposition() + noise, 0.0) == parse_readings(exposition(), 0.0)


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "-1", "-0.001", "1e300", "9.3e18", "9007199254740994"])
def test_what_no_meter_can_show_makes_the_scrape_untrustworthy(name, value):
    with pytest.raises(BadReading, match=name):
        parse_readings(exposition(**{name: value}), 0.0)


@pytest.mark.parametrize("name", [one for one in SOUND if not one.endswith("_watts")])
def test_a_count_that_is_no_whole_number_makes_the_scrape_untrustworthy(name):
    with pytest.raises(BadReading, match=f"{name} is 1.5"):
        parse_readings(exposition(**{name: 1.5}), 0.0)


def test_ends_whose_sum_is_too_large_make_the_scrape_untrustworthy():
    more = "".join(f'{PREFIX}ends_total{{substation="north",reason="{number}"}} {2**52}\n' for number in range(3))

    with pytest.raises(BadReading, match="ends_total"):
        parse_readings(exposition() + more, 0.0)


@pytest.mark.parametrize("name", SOUND)
def test_a_missing_gauge_makes_the_scrape_untrustworthy_and_is_named(name):
    with pytest.raises(BadReading, match=f"'north' lacks {name}"):
        parse_readings(exposition(**{name: None}), 0.0)


@pytest.mark.parametrize("name", sorted(SOUND.keys() - {"ends_total"}))
def test_a_doubled_gauge_makes_the_scrape_untrustworthy(name):
    again = f'{PREFIX}{name}{{substation="north"}} {SOUND[name]}\n'

    with pytest.raises(BadReading, match="twice"):
        parse_readings(exposition() + again, 0.0)


def test_one_bad_substation_spoils_the_whole_scrape():
    with pytest.raises(BadReading, match="south"):
        parse_readings(exposition("north") + exposition("south", epoch=None), 0.0)


def test_a_gauge_that_names_no_substation_is_nobodys_reading():
    with pytest.raises(BadReading):
        parse_readings(exposition() + f"{PREFIX}power_watts 5\n", 0.0)


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        '<html>\n<head><title>Login</title></head>\n<p class="x">1</p>\n</html>\n',
        '{"status": "ok"}',
        f'{PREFIX}power_watts{{substation="north"',
        f'{PREFIX}power_watts{{substation="north"}}',
        f'{PREFIX}power_watts{{substation="north"}} many',
        "}{ 1",
    ],
)
def test_what_is_no_exposition_is_a_bad_reading(text):
    with pytest.raises(BadReading):
        parse_readings(text, 0.0)


@pytest.mark.parametrize("text", ["", "up 1\n"])
def test_nothing_of_ours_is_no_reading(text):
    with pytest.raises(BadReading, match="no substation"):
        parse_readings(text, 0.0)


@settings(max_examples=50)
@given(st.text('{}="#,.-+ \n\\\x00ae1é', max_size=60))
def test_any_text_is_refused_and_nothing_else_happens(text):
    with pytest.raises(BadReading):
        parse_readings(text, 0.0)


@given(st.data())
def test_a_scrape_cut_off_anywhere_is_refused_or_lacks_nothing(data):
    whole = exposition()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        readings = parse_readings(cut, 0.0)
    except BadReading:
        return
    # Only the last figure can have lost digits without anybody seeing it.
    assert readings in ({}, parse_readings(whole, 0.0))


@pytest.mark.parametrize(
    ("later", "earlier", "is_newer"),
    [
        ((1, 2), (1, 1), True),
        ((2, 1), (1, 99), True),
        ((1, 1), (1, 1), False),
        ((1, 1), (1, 2), False),
        ((1, 99), (2, 1), False),
    ],
)
def test_snapshots_are_ordered_by_epoch_and_then_sequence(later, earlier, is_newer):
    def snapshot(epoch, sequence):
        return parse_readings(exposition(epoch=epoch, snapshot_sequence=sequence), 0.0)["north"]

    assert snapshot(*later).is_newer_than(snapshot(*earlier)) is is_newer
    assert snapshot(*later).is_newer_than(None)


def test_all_names_that_are_asked_for_are_needed():
    assert set(METRIC_NAMES) == {PREFIX + name for name in SOUND}
