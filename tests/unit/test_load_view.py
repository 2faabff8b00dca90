import json

import pytest

from gateway.load_view import PASSED_OVER_S, LoadView
from services.clock import wall_ms


def event(as_of_ms=1_767_225_600_000, source="balancer-1", **lines):
    substations = [{"substation": name, "demand_kw": kw} for name, kw in (lines or {"north": 1.0}).items()]
    return {"v": 1, "kind": "load_table", "source": source, "as_of_ms": as_of_ms, "substations": substations}


def test_before_any_balancer_was_heard_the_table_is_empty_and_has_no_time():
    view = LoadView()

    assert view.table() == {"as_of": None, "age_s": None, "balancer": None, "items": []}
    assert view.substation("north") is None


def test_the_table_is_shown_as_it_was_told_with_its_time_and_teller():
    view = LoadView()
    view.take(event(north=1.0, south=2.0))

    table = view.table()

    assert table["as_of"] == "2026-01-01T00:00:00.000Z"
    assert table["balancer"] == "balancer-1"
    assert table["items"] == [{"substation": "north", "demand_kw": 1.0}, {"substation": "south", "demand_kw": 2.0}]
    json.dumps(table, allow_nan=False)


def test_an_older_event_that_comes_late_is_passed_over():
    view = LoadView()
    view.take(event(2_000, "balancer-2", north=2.0))
    view.take(event(1_999, "balancer-1", north=1.0))

    assert view.table()["balancer"] == "balancer-2"


def test_of_two_events_of_one_time_the_last_one_counts():
    view = LoadView()
    view.take(event(2_000, "balancer-1"))
    view.take(event(2_000, "balancer-2"))

    assert view.table()["balancer"] == "balancer-2"


def test_one_line_comes_with_the_tables_time():
    view = LoadView()
    view.take(event(north=1.0, south=2.0))

    line = view.substation("south")

    assert (line["demand_kw"], line["as_of"], line["balancer"]) == (2.0, "2026-01-01T00:00:00.000Z", "balancer-1")
    assert view.substation("nowhere") is None


def test_the_age_is_told_and_never_negative():
    view = LoadView()
    view.take(event(0))
    assert view.table()["age_s"] > 1e9

    view.take(event(wall_ms() + 3_600_000))
    assert 0 <= view.table()["age_s"] < 60


def test_the_age_grows_by_the_monotonic_clock_and_a_clock_that_was_set_back_hides_no_table(monkeypatch):
    now_s, view = 100.0, LoadView()
    monkeypatch.setattr("gateway.load_view.monotonic_s", lambda: now_s)
    monkeypatch.setattr("gateway.load_view.wall_ms", lambda: 5_000)
    view.take(event(4_000, "balancer-1"))
    monkeypatch.setattr("gateway.load_view.wall_ms", lambda: 0)
    now_s += 2.5

    assert view.table()["age_s"] == 3.5
    view.take(event(2_000, "balancer-2"))
    assert view.table()["balancer"] == "balancer-1"
    now_s += PASSED_OVER_S
    view.take(event(2_000, "balancer-2"))
    assert view.table()["balancer"] == "balancer-2"


@pytest.mark.parametrize("name", ["as_of_ms", "substations", "source"])
def test_an_event_that_lacks_a_member_is_refused_and_the_table_stays(name):
    view = LoadView()
    view.take(event(1_000))
    bad = event(2_000, "balancer-2")
    del bad[name]

    with pytest.raises(KeyError):
        view.take(bad)
    assert view.table()["balancer"] == "balancer-1"


@pytest.mark.parametrize("changes", [{"as_of_ms": "soon"}, {"as_of_ms": None}, {"substations": {}}, {"substations": 5}])
def test_an_event_of_another_shape_is_refused(changes):
    with pytest.raises((TypeError, ValueError)):
        LoadView().take({**event(), **changes})
