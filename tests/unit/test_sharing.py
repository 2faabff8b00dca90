from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from substations.sharing import share

LIMITS = st.integers(0, 400_000)
WISHES = st.lists(st.integers(0, 50_000), max_size=40)


@given(LIMITS, WISHES)
def test_the_sum_stays_within_the_limit_and_nobody_gets_more_than_wished_or_less_than_nothing(limit_w, wanted_w):
    granted_w = share(limit_w, wanted_w)

    assert len(granted_w) == len(wanted_w)
    assert sum(granted_w) <= limit_w
    assert all(0 <= granted <= wanted for granted, wanted in zip(granted_w, wanted_w, strict=True))


@given(LIMITS, WISHES)
def test_no_capacity_is_left_idle_while_somebody_wants_it(limit_w, wanted_w):
    idle_w = min(limit_w, sum(wanted_w)) - sum(share(limit_w, wanted_w))

    assert 0 <= idle_w < max(1, len(wanted_w))


@given(LIMITS, WISHES)
def test_whoever_is_cut_short_has_no_less_than_anybody_else(limit_w, wanted_w):
    # Max-min fairness: nobody can get more without somebody getting less who has no more (1 W for whole numbers).
    granted_w = share(limit_w, wanted_w)
    cut_short = [granted for granted, wanted in zip(granted_w, wanted_w, strict=True) if granted < wanted]

    if cut_short:
        assert min(cut_short) >= max(granted_w) - 1


@given(LIMITS, WISHES.flatmap(lambda wishes: st.tuples(st.just(wishes), st.permutations(wishes))))
def test_the_order_of_the_sessions_does_not_matter(limit_w, orders):
    one, other = orders

    assert Counter(zip(one, share(limit_w, one), strict=True)) == Counter(
        zip(other, share(limit_w, other), strict=True)
    )


@given(LIMITS, WISHES, st.integers(0, 50_000))
def test_another_session_never_brings_anybody_more_than_rounding(limit_w, wanted_w, newcomer_w):
    before = share(limit_w, wanted_w)
    after = share(limit_w, [*wanted_w, newcomer_w])[:-1]

    assert all(later <= earlier + 1 for earlier, later in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("limit_w", "wanted_w", "granted_w"),
    [
        (304_000, [11_000] * 10, [11_000] * 10),
        (304_000, [11_000] * 40, [7_600] * 40),
        (30, [5, 50, 50], [5, 12, 13]),
        (30, [50, 5, 50], [12, 5, 13]),
        (100, [22, 3, 150, 43], [22, 3, 38, 37]),
        (7, [7, 7], [3, 4]),
        (1, [9, 9, 9], [0, 0, 1]),
        (0, [9, 9], [0, 0]),
        (-5, [9, 9], [0, 0]),
        (10, [], []),
        (10, [0, 0], [0, 0]),
    ],
)
def test_examples_worked_out_by_hand(limit_w, wanted_w, granted_w):
    assert share(limit_w, wanted_w) == granted_w
