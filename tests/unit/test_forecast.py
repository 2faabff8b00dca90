import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.forecast import ENDS_NEEDED, expected_waits, pace
from services.ledger.records import Outlook, PastSession, Place, Queued

HOUR_MS = 3_600_000


def ends(count=ENDS_NEEDED, **changes):
    """By default each took what a watt gives in a second: a pace of 1."""
    return tuple(
        PastSession(**{"delivered_j": 10_000, "power_max_w": 1_000, "took_ms": 10_000, **changes}) for _ in range(count)
    )


def queued(
    request_id="r", *, at=None, zone=None, owed_j=10_000, power_w=1_000, wait_left_ms=HOUR_MS, departs_in_ms=None
):
    return Queued(request_id, at, zone, owed_j, power_w, wait_left_ms, departs_in_ms)


def outlook(*waiting, places=(("north", None, 1),), charging=(), in_bays=(), recent=None):
    return Outlook(
        tuple(Place(*one) for one in places), tuple(charging), tuple(in_bays), tuple(waiting),
        ends() if recent is None else recent,
    )  # fmt: skip


def test_with_few_recent_ends_nothing_is_known():
    assert expected_waits(outlook(queued(), recent=ends(ENDS_NEEDED - 1))) == {}
    assert pace(ends(delivered_j=0)) is None


def test_the_pace_is_what_recent_sessions_got_of_their_wish():
    assert pace(ends(delivered_j=600_000)) == pytest.approx(60)
    assert pace(ends(delivered_j=300_000)) == pytest.approx(30)


def test_who_is_next_waits_for_the_session_that_ends_first_and_the_others_behind_it():
    places = [("north", None, 1), ("south", None, 1)]
    charging = [queued("x", at="north", owed_j=3_000), queued("y", at="south", owed_j=8_000)]

    waits = expected_waits(outlook(queued("a"), queued("b"), queued("c"), places=places, charging=charging))

    assert waits == {"a": pytest.approx(3), "b": pytest.approx(8), "c": pytest.approx(13)}


def test_a_free_connector_is_no_wait():
    assert expected_waits(outlook(queued("a"))) == {"a": 0}


def test_a_vehicle_in_a_bay_goes_first_where_it_stands():
    places = [("north", None, 1), ("south", None, 1)]
    charging = [queued("x", at="north", owed_j=5_000), queued("y", at="south", owed_j=9_000)]

    waits = expected_waits(outlook(queued("a"), places=places, charging=charging, in_bays=[queued("b", at="north")]))

    assert waits == {"a": pytest.approx(9)}


def test_only_the_zone_that_was_asked_for_counts_and_an_unknown_one_is_never_reached():
    places = [("north", "hills", 1), ("south", None, 1)]
    charging = [queued("x", at="north", owed_j=50_000)]
    waiting = [queued("a", zone="hills"), queued("b", zone="sea"), queued("c")]

    assert expected_waits(outlook(*waiting, places=places, charging=charging)) == {"a": pytest.approx(50), "c": 0}


def test_who_gives_up_before_takes_nobodys_place():
    charging = [queued("x", at="north", owed_j=5_000)]
    waiting = [queued("hasty", wait_left_ms=4_000), queued("patient")]

    assert expected_waits(outlook(*waiting, charging=charging)) == {
        "hasty": pytest.approx(5),
        "patient": pytest.approx(5),
    }


def test_who_departs_before_it_is_full_frees_its_connector_then():
    charging = [queued("x", at="north", owed_j=50_000, departs_in_ms=7_000)]
    waiting = [queued("a", departs_in_ms=9_000), queued("b")]

    assert expected_waits(outlook(*waiting, charging=charging)) == {"a": pytest.approx(7), "b": pytest.approx(9)}


@given(
    st.lists(st.integers(1, 10**9), max_size=30),
    st.lists(st.integers(1, 10**9), max_size=6),
    st.integers(1, 6),
)
def test_alike_vehicles_are_reached_in_their_order(energies_j, busy_j, connectors):
    charging = [queued(f"x{number}", at="north", owed_j=owed_j) for number, owed_j in enumerate(busy_j[:connectors])]
    waiting = [queued(f"r{number}", owed_j=owed_j, wait_left_ms=10**12) for number, owed_j in enumerate(energies_j)]

    waits = expected_waits(outlook(*waiting, places=[("north", None, connectors)], charging=charging))

    assert list(waits) == [one.request_id for one in waiting]
    assert list(waits.values()) == sorted(waits.values())
