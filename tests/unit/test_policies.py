import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.load_table import Estimate, LoadTable
from balancer.policies import EXPLAINED_CANDIDATES, FIRST_OF_TIED, POLICIES, Choice, NoRoom, choose
from balancer.readings import Reading

LEAST = "least-utilisation"
SCRAPED = "least-load-scraped"


def estimate(substation="a", **changes):
    kept = {
        "substation": substation,
        "zone": None,
        "demand_w": 0.0,
        "limit_w": 304_000.0,
        "floor_w": 1_380.0,
        "taken": 0,
        "connectors": 40,
        "bays": 0,
        "scraped_w": 0.0,
        "in_flight": 0,
        "age_s": 0.2,
        "fresh": True,
        "operative": True,
        "has_lease": True,
    }
    return Estimate(**{**kept, **changes})


def chosen(estimates, *, name=LEAST, power_w=11_000, zone=None, seed=0):
    decision = choose(name, estimates, power_w, zone, random.Random(seed))
    assert isinstance(decision, Choice), decision
    return decision.substation


def reading(substation, **changes):
    kept = {"power_w": 0.0, "demand_w": 0.0, "limit_w": 304_000.0, "sessions": 0, "connectors": 40}
    return Reading(
        substation,
        1,
        1,
        **{**kept, **changes},
        floor_w=1_380.0,
        bays=0,
        claims_total=0,
        ends_total=0,
        operative=True,
        taken_at_s=0.0,
    )


def dispatch(readings, count, *, name=LEAST, power_w=11_000, seed=1):
    """Decide `count` times between two scrapes, each decision reserved at once, as a balancer does."""
    table, rng = LoadTable(), random.Random(seed)
    table.refresh({one.substation: one for one in readings}, {one.substation: None for one in readings}, [], 0)
    counts = Counter({one.substation: 0 for one in readings})
    for number in range(count):
        decision = choose(name, table.estimates(0.0, 3.0), power_w, None, rng)
        if isinstance(decision, Choice):
            table.reserve(f"r{number}", 1, decision.substation, power_w)
            counts[decision.substation] += 1
    return counts


@given(st.integers(0, 160), st.integers(0, 2**32), st.sampled_from([3_700, 11_000, 22_000]))
def test_equal_requests_spread_evenly_over_equal_substations(count, seed, power_w):
    counts = dispatch([reading(name) for name in "abcd"], count, power_w=power_w, seed=seed)

    assert sum(counts.values()) == count
    assert max(counts.values()) - min(counts.values()) <= 1


def test_unequal_substations_are_loaded_in_proportion_to_their_limits():
    sizes = {"small": 1, "middle": 2, "large": 4}
    readings = [reading(name, limit_w=100_000.0 * size, connectors=1_000 * size) for name, size in sizes.items()]

    counts = dispatch(readings, 70, power_w=5_000)

    assert counts == {"small": 10, "middle": 20, "large": 40}


def test_the_load_of_the_last_scrape_is_evened_out_first():
    readings = [reading("busy", demand_w=110_000.0, sessions=10), reading("idle")]

    assert dispatch(readings, 10) == {"busy": 0, "idle": 10}


def test_the_original_policy_herds_to_whoever_was_lowest_at_the_last_scrape():
    readings = [reading("a", power_w=2.0), reading("b", power_w=1.0), reading("c", power_w=2.0)]

    assert dispatch(readings, 30, name=SCRAPED) == {"a": 0, "b": 30, "c": 0}


def test_power_decides_where_power_is_scarcer():
    much_power = estimate("much-power", demand_w=10_000.0, taken=6, connectors=40)
    few_sessions = estimate("few-sessions", demand_w=250_000.0, taken=2, connectors=40)

    assert chosen([much_power, few_sessions]) == "much-power"


def test_taken_connectors_do_not_matter_while_one_is_free():
    many_free = estimate("many-free", demand_w=60_000.0, taken=10, connectors=40)
    nearly_full = estimate("nearly-full", demand_w=10_000.0, taken=39, connectors=40)

    assert chosen([many_free, nearly_full]) == "nearly-full"


def test_a_free_connector_is_preferred_to_a_bay():
    loaded = estimate("loaded", demand_w=400_000.0, taken=39, connectors=40)
    full = estimate("full", demand_w=10_000.0, taken=40, connectors=40, bays=10)

    assert chosen([loaded, full]) == "loaded"


def test_among_bays_the_shortest_queue_for_its_connectors_is_chosen():
    small = estimate("small", taken=5, connectors=4, bays=4)
    large = estimate("large", taken=42, connectors=40, bays=10)

    assert chosen([small, large]) == "large"


def test_the_share_after_the_request_decides_not_the_one_before():
    small = estimate("small", limit_w=20_000.0, connectors=400)
    large = estimate("large", limit_w=300_000.0, demand_w=30_000.0, connectors=400)

    assert chosen([small, large], power_w=11_000) == "large"


def test_only_the_zone_that_was_asked_for_is_considered():
    west = estimate("west-1", zone="west", demand_w=200_000.0)
    east = estimate("east-1", zone="east")
    nowhere = estimate("nowhere-1")

    assert chosen([west, east, nowhere], zone="west") == "west-1"
    assert choose(LEAST, [east, nowhere], 1, "west", random.Random(0)) == NoRoom({"other_zone": 2})


def test_a_stale_reading_counts_as_full_while_a_fresh_one_has_room():
    stale = estimate("stale", fresh=False)
    fresh = estimate("fresh", demand_w=300_000.0, taken=39)

    decision = choose(LEAST, [stale, fresh], 11_000, None, random.Random(0))

    assert decision.substation == "fresh"
    assert decision.explanation["excluded"] == {"stale": 1}


def test_the_last_reading_decides_only_where_nobodys_is_fresh():
    stale = [estimate("stale-1", fresh=False, demand_w=90_000.0), estimate("stale-2", fresh=False)]
    full = estimate("full", taken=40)

    assert chosen(stale) == "stale-2"
    assert choose(LEAST, [*stale, full], 11_000, None, random.Random(0)) == NoRoom({"no_place": 1, "stale": 2})


def test_nobody_is_sent_into_a_bay_while_a_connector_is_free_elsewhere():
    idle_bays = estimate("idle-bays", demand_w=148_000.0, taken=40, bays=10)
    busy = estimate("busy", demand_w=300_000.0, taken=14, bays=10)

    decision = choose(LEAST, [idle_bays, busy], 11_000, None, random.Random(0))

    assert decision.substation == "busy"
    assert decision.explanation["excluded"] == {"bay_only": 1}
    assert chosen([idle_bays, replace(busy, taken=45)]) == "idle-bays"


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("others", "avoided", "expected", "excluded"),
    [
        ([estimate("busy", demand_w=300_000.0, scraped_w=300_000.0)], {"idle"}, "busy", {"unreached": 1}),
        ([], {"idle"}, "idle", {}),
        ([estimate("away", demand_w=300_000.0, scraped_w=300_000.0)], {"idle", "away"}, "idle", {}),
        ([estimate("bay", taken=40, bays=10)], {"idle"}, "idle", {"bay_only": 1}),
        ([estimate("full", taken=40)], {"idle"}, "idle", {"no_place": 1}),
        ([estimate("old", fresh=False)], {"idle"}, "idle", {"stale": 1}),
        ([], {"stranger"}, "idle", {}),
    ],
)
def test_whom_messages_do_not_reach_takes_only_what_nobody_else_could_take_as_well(
    name, others, avoided, expected, excluded
):
    decision = choose(name, [estimate("idle"), *others], 11_000, None, random.Random(0), avoided)

    assert (decision.substation, decision.explanation["excluded"]) == (expected, excluded)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"has_lease": False}, "no_lease"),
        ({"operative": False}, "inoperative"),
        ({"limit_w": 0.0}, "no_power"),
        ({"limit_w": 5e-324}, "no_power"),
        ({"limit_w": 1_379.0}, "no_power"),
        ({"limit_w": 4_000.0, "taken": 2}, "no_place"),
        ({"limit_w": 4_000.0, "taken": 4, "bays": 2}, "no_place"),
        ({"taken": 40}, "no_place"),
        ({"taken": 41}, "no_place"),
        ({"taken": 50, "bays": 10}, "no_place"),
        ({"connectors": 0}, "no_place"),
    ],
)
def test_who_has_no_room_is_not_chosen_and_the_cause_is_told(changes, cause):
    shut = estimate("shut", **changes)

    assert choose(LEAST, [shut], 11_000, None, random.Random(0)) == NoRoom({cause: 1})
    decision = choose(LEAST, [shut, estimate("open", demand_w=1e6)], 11_000, None, random.Random(0))
    assert (decision.substation, decision.explanation["excluded"]) == ("open", {cause: 1})


def test_no_room_counts_every_cause():
    estimates = [
        estimate("a", operative=False),
        estimate("b", operative=False),
        estimate("c", taken=40),
        estimate("d", limit_w=0.0),
    ]

    assert choose(LEAST, estimates, 11_000, None, random.Random(0)) == NoRoom(
        {"inoperative": 2, "no_place": 1, "no_power": 1}
    )


def test_no_substation_at_all_is_no_room():
    assert choose(LEAST, [], 11_000, None, random.Random(0)) == NoRoom({})


def test_demand_above_the_limit_ranks_and_excludes_nobody():
    assert chosen([estimate("over", demand_w=500_000.0), estimate("further-over", demand_w=600_000.0)]) == "over"


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - FIRST_OF_TIED))
def test_ties_are_broken_by_the_seed_and_every_tied_one_has_its_turn(name):
    tied = [estimate(one) for one in "abcd"]
    seeds = range(60)

    first = [chosen(tied, name=name, seed=seed) for seed in seeds]

    assert first == [chosen(tied, name=name, seed=seed) for seed in seeds]
    assert set(first) == set("abcd")


def test_the_original_policy_takes_the_first_of_equals_and_so_sends_everybody_there():
    assert {chosen([estimate(name) for name in "badc"], name=SCRAPED, seed=seed) for seed in range(20)} == {"b"}
    assert dispatch([reading(name) for name in "abcd"], 30, name=SCRAPED) == {"a": 30, "b": 0, "c": 0, "d": 0}


def test_who_is_worse_takes_no_part_in_a_tie():
    estimates = [estimate("a"), estimate("b"), estimate("worse", demand_w=50_000.0)]

    assert {chosen(estimates, seed=seed) for seed in range(60)} == {"a", "b"}


@given(
    st.lists(
        st.builds(
            estimate,
            st.sampled_from("abcdefgh"),
            demand_w=st.floats(0, 1e6),
            limit_w=st.floats(0, 1e6),
            taken=st.integers(0, 12),
            connectors=st.integers(1, 10),
            fresh=st.booleans(),
            operative=st.booleans(),
            zone=st.sampled_from([None, "west"]),
        ),
        max_size=5,
        unique_by=lambda one: one.substation,
    ),
    st.sampled_from([None, "west"]),
    st.sampled_from(sorted(POLICIES)),
)
def test_whoever_is_chosen_has_room_and_everybody_else_is_accounted_for(estimates, zone, name):
    with_room = [
        one
        for one in estimates
        if one.operative and one.usable > 0 and one.taken < one.usable + one.bays and zone in (None, one.zone)
    ]
    if any(one.fresh and one.operative and one.usable > 0 and zone in (None, one.zone) for one in estimates):
        with_room = [one for one in with_room if one.fresh]

    match choose(name, estimates, 11_000, zone, random.Random(0)):
        case NoRoom(excluded):
            assert not with_room
            assert sum(excluded.values()) == len(estimates)
        case Choice(substation, explanation):
            mine = next(one for one in with_room if one.substation == substation)
            assert mine.fresh or not any(one.fresh for one in with_room)
            assert explanation["candidates_total"] + sum(explanation["excluded"].values()) == len(estimates)
            json.dumps(explanation, allow_nan=False)


def test_a_decision_explains_itself():
    estimates = [
        estimate("a", demand_w=100_000.0, taken=2, in_flight=1, age_s=0.416),
        estimate("b", demand_w=120_000.0, taken=30),
        estimate("c", operative=False),
    ]

    decision = choose(LEAST, estimates, 11_000, None, random.Random(0))

    assert decision.explanation == {
        "policy": LEAST,
        "substation": "a",
        "limited_by": "power",
        "tied": 1,
        "candidates": [
            {
                "substation": "a",
                "score": round(111 / 304, 4),
                "demand_kw": 100.0,
                "limit_kw": 304.0,
                "sessions": 2,
                "connectors": 40,
                "bays_taken": 0,
                "bays": 0,
                "in_flight": 1,
                "reading_age_s": 0.42,
            },
            {
                "substation": "b",
                "score": round(131 / 304, 4),
                "demand_kw": 120.0,
                "limit_kw": 304.0,
                "sessions": 30,
                "connectors": 40,
                "bays_taken": 0,
                "bays": 0,
                "in_flight": 0,
                "reading_age_s": 0.2,
            },
        ],
        "candidates_total": 2,
        "excluded": {"inoperative": 1},
    }


def test_the_explanation_says_when_connectors_limit():
    decision = choose(LEAST, [estimate(taken=40, bays=10)], 11_000, None, random.Random(0))

    assert decision.explanation["limited_by"] == "connectors"


def test_a_long_explanation_shows_the_chosen_one_and_the_next_best_and_tells_how_many_there_were():
    estimates = [estimate(f"s{number}", demand_w=1_000.0 * number) for number in reversed(range(30))]

    explanation = choose(LEAST, estimates, 11_000, None, random.Random(0)).explanation

    assert [one["substation"] for one in explanation["candidates"]] == [f"s{n}" for n in range(EXPLAINED_CANDIDATES)]
    assert explanation["candidates_total"] == 30


def test_the_chosen_one_stands_first_in_the_explanation_even_among_many_tied():
    tied = [estimate(f"s{number}") for number in range(20)]

    for seed in range(20):
        explanation = choose(LEAST, tied, 11_000, None, random.Random(seed)).explanation
        assert explanation["candidates"][0]["substation"] == explanation["substation"]
        assert explanation["tied"] == 20
        assert len({one["substation"] for one in explanation["candidates"]}) == EXPLAINED_CANDIDATES
