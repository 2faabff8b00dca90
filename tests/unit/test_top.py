"""What `top` makes of successive answers, and that a frame fits its terminal."""

import pytest
from harness.fake_gateway import line, load_table, request
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from services.cli.top_frame import frame
from services.cli.watching import CHANGES_KEPT, Watch


def counts(accepted=0, completed=0, age_s=0.0):
    return load_table(line(), requests={"accepted": accepted, "completed": completed}, requests_age_s=age_s)


def test_rates_are_differences_of_counts_over_the_time_between_the_countings():
    watch = Watch()
    watch.take(counts(10, 0, age_s=1.0), [], 100.0)
    assert watch.rates() == (None, None)
    watch.take(counts(10, 0, age_s=2.0), [], 101.0)  # the same counting, told again
    assert watch.rates() == (None, None)
    watch.take(counts(4, 16, age_s=0.0), [], 103.0)  # ten more arrived, sixteen ended, in 4 s

    assert watch.rates() == (2.5, 4.0)


def test_rates_forget_what_is_long_past():
    watch = Watch()
    for second in range(100):
        watch.take(counts(completed=0 if second < 50 else (second - 50) * 3), [], float(second))

    assert watch.rates() == (3.0, 3.0)


def test_a_gateway_that_has_not_counted_gives_no_rates():
    watch = Watch()
    for second in range(3):
        watch.take(load_table(line(), requests=None, requests_age_s=None), [], float(second))

    assert watch.rates() == (None, None)


def test_changes_are_told_once_newest_first_and_the_first_look_has_none():
    watch = Watch()
    assert watch.take(counts(), [request("a", "accepted"), request("b", "charging")], 1.0) == []
    changed = watch.take(counts(), [request("c", "charging"), request("a", "charging"), request("b", "charging")], 2.0)
    assert [(one.request_id, one.before, one.status) for one in changed] == [
        ("c", None, "charging"), ("a", "accepted", "charging"),
    ]  # fmt: skip
    assert watch.take(counts(), [request("c", "charging"), request("a", "charging")], 3.0) == []
    watch.take(counts(), [request("a", "completed")], 4.0)

    assert [one.request_id for one in watch.changes] == ["a", "c", "a"]


def test_what_left_the_page_long_ago_is_forgotten():
    watch = Watch()
    for number in range(2_000):
        watch.take(counts(), [request(f"r{number}", "accepted")], float(number))

    assert len(watch.changes) == CHANGES_KEPT
    long_gone, lately_gone = watch.take(counts(), [request("r0", "charging"), request("r1998", "charging")], 2_000.0)
    assert (long_gone.before, lately_gone.before) == (None, "accepted")


def shown(watch, width, height, fault=""):
    console = Console(width=width, height=height, color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(frame(watch, "http://127.0.0.1:8080", fault, width, height))
    return captured.get().splitlines()


@given(
    lines=st.lists(
        st.builds(
            line, st.text("abcdefgh-", min_size=1, max_size=63), utilisation=st.none() | st.floats(0, 30),
            fresh=st.booleans(),
        ), max_size=60,
    ),
    requests=st.integers(0, 60), height=st.integers(24, 80), width=st.integers(80, 200),
)  # fmt: skip
def test_a_frame_fits_every_terminal_of_80_by_24_or_more(lines, requests, height, width):
    watch = Watch()
    watch.take(load_table(*lines), [request(f"r{number}", "accepted") for number in range(requests)], 0.0)
    watch.take(load_table(*lines), [request(f"r{number}", "charging") for number in range(requests)], 1.0)
    picture = shown(watch, width, height)

    assert len(picture) <= height
    assert all(len(row) <= width for row in picture)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_a_frame_has_everything_that_matters(width, height):
    watch = Watch()
    watch.take(counts(5, 7), [request("r-1", "accepted")], 0.0)
    watch.take(counts(5, 27), [request("r-1", "charging"), request("r-2", "completed")], 10.0)
    text = "\n".join(shown(watch, width, height))

    for word in (
        "evenload top", "balancer-1", "accepted", "cancelled", "27", "2.0 accepted/s", "2.0 ended/s", "north", "50%",
        "━", "14/40", "accepted → charging", "r-1", "r-2",
    ):  # fmt: skip
        assert word in text, text


def test_when_substations_are_many_the_busiest_are_shown():
    watch = Watch()
    lines = [line(f"s{number:03}", utilisation=number / 100) for number in range(100)]
    watch.take(load_table(*lines), [], 0.0)
    text = "\n".join(shown(watch, 80, 24))

    assert "s099" in text
    assert "s000" not in text
    assert "less busy" in text


def test_a_gateway_that_went_away_is_told_in_the_frame():
    watch = Watch()
    watch.take(counts(), [], 0.0)

    assert "no gateway answers" in shown(watch, 80, 24, "no gateway answers at x: wait")[0]
