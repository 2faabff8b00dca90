from collections import Counter

import pytest

from services.cli.rush_report import Request, Rush, RushPlan, summary, verdict


def rush(requests=120, claimed=None, *, older_sessions=0, refused=()):
    plan = RushPlan(requests, 10, 6, 11, "claimed", 900, "http://gateway")
    count = requests if claimed is None else claimed
    taken = [Request(str(number), "charging", "north", "2026-01-01T00:00:00Z") for number in range(count)]
    waiting = [Request(str(number)) for number in range(count, requests - sum(Counter(refused).values()))]
    return Rush(plan, taken + waiting, Counter(refused), older_sessions)


def table(*utilisations):
    return [
        {"substation": str(place), "limit_kw": 304, "utilisation": share} for place, share in enumerate(utilisations)
    ]


def test_where_limits_differ_utilisation_is_judged():
    lines = table(0.9, 0.92)
    lines[0]["limit_kw"] = 190

    assert verdict(rush(), [40, 80], lines) == [
        "the substations' limits differ, so",
        "utilisation is judged, not counts: even, 90% to 92%",
    ]


def test_equal_counts_are_called_even():
    assert verdict(rush(), [30, 30, 30, 30], table(1, 1, 1, 1)) == [
        "even: 30 requests a substation on average, none further from it than 0"
    ]


@pytest.mark.parametrize(
    ("counts", "word"),
    [([28, 30, 31, 31], "even"), ([28, 32, 30, 30], "even"), ([27, 31, 31, 31], "uneven"), ([120, 0, 0, 0], "uneven")],
)
def test_two_requests_off_the_mean_are_still_even_and_more_are_not(counts, word):
    (said,) = verdict(rush(), counts, table(0, 0, 0, 0))

    assert said.startswith(f"{word}: 30 requests")


@pytest.mark.parametrize(
    ("shares", "word"),
    [((0.50, 0.55, 0.52), "even"), ((0.50, 0.56, 0.52), "uneven"), ((0.5, None, 0.5), "even")],
)
def test_with_older_sessions_utilisation_is_judged_and_counts_are_not(shares, word):
    said = verdict(rush(older_sessions=7), [120] + [0] * (len(shares) - 1), table(*shares))

    assert said[0].startswith("7 older sessions were charging")
    assert said[-1].split(": ")[1].startswith(f"{word},")
    assert len(said) == 2


def test_without_any_utilisation_nothing_is_called_even():
    said = verdict(rush(older_sessions=7), [120, 0], table(None, None))

    assert not any(word in line.split() for line in said for word in ("even,", "uneven,"))


def test_who_was_not_claimed_in_time_is_counted():
    said = verdict(rush(claimed=100), [25, 25, 25, 25], table(1, 1, 1, 1))

    assert said[0] == "20 of 120 had not been claimed within 900 s"
    assert said[1].startswith("even")


def test_refusals_are_told_by_cause_and_nobody_waits_for_them():
    said = verdict(rush(claimed=114, refused={"503: later": 3, "no route": 1}), [28, 28, 29, 29], table(1, 1, 1, 1))

    assert said[:3] == [
        "3 refused: 503: later",
        "1 refused: no route",
        "2 of 116 had not been claimed within 900 s",
    ]


def test_where_nobody_charges_nothing_is_called_even():
    assert verdict(rush(2, claimed=0, refused={"422: no": 2}), [0] * 4, table(0, 0, 0, 0)) == ["2 refused: 422: no"]


def test_without_any_substation_there_is_nothing_to_judge():
    assert verdict(rush(claimed=0), [], []) == [
        "120 of 120 had not been claimed within 900 s",
        "no balancer has told of any substation yet",
    ]


def answer(*states, substation="north"):
    return {
        "status": states[-1],
        "substation": substation,
        "history": [{"at": f"t{place}", "status": state} for place, state in enumerate(states)],
    }


def test_a_request_was_claimed_when_its_history_says_so_even_if_it_has_ended_since():
    request = Request("r")
    request.take(answer("accepted", "assigned", "charging", "charging", "completed"))

    assert (request.claimed_at, request.substation, request.status) == ("t2", "north", "completed")


def test_who_expired_is_ended_and_never_had_a_connector():
    one = rush(requests=3, claimed=1)
    one.requests[1].take(answer("accepted", "expired", substation=None))

    assert (one.claimed, one.ended) == (2, 1)
    assert one.requests[1].claimed_at is None


@pytest.mark.parametrize(
    ("one", "lines", "even"),
    [
        (rush(4), table(1, 1), True),
        (rush(4, refused={"503: uneven, later": 1}), [], None),
        (rush(40, claimed=0), table(0, 0), None),
        (rush(4, older_sessions=3), table(0.5, 0.9), False),
    ],
)
def test_the_summary_for_programs_has_the_verdict_as_a_word_and_as_a_fact(one, lines, even):
    for number, request in enumerate(one.requests):
        request.substation = str(number % 2)
    told = summary(one, lines)

    assert told["even"] is even
    assert told["requests"] == one.plan.requests
    assert told["refused"] == dict(one.refused)
    assert sum(told["substations"].values()) == (one.claimed if lines else 0)
