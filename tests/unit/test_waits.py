"""The expected waits of requests for one connector that frees after ten seconds, by a real ledger in memory."""

import asyncio

import pytest
from harness.ledger import ending, registration

from gateway import waits
from gateway.forecast import ENDS_NEEDED
from gateway.load_view import LoadView
from gateway.waits import WaitForecast

TAKES_MS = 10_000
LIKE_ALL = {"energy_requested_j": 10_000, "power_max_w": 1_000}
"""Each session lasts for ten seconds."""


class Clock:
    def __init__(self, monkeypatch):
        self.now_s = 500.0
        monkeypatch.setattr(waits, "monotonic_s", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
async def busy(ledger):
    """A ledger with so many sessions in the past that one knows how long they take, and one that has just begun."""
    await ledger.take(registration(connectors=1))
    for number in range(ENDS_NEEDED):
        await ledger.claimed(f"past-{number}", **LIKE_ALL)
        ledger.now_ms += TAKES_MS
        await ledger.charging.end([ending(f"past-{number}", delivered_j=10_000)])
    await ledger.claimed("charging", **LIKE_ALL)
    ledger.calls.clear()
    return ledger


async def test_one_projection_serves_everybody_for_a_second(busy, clock):
    await busy.accepted("a", "b", **LIKE_ALL)
    forecast = WaitForecast(busy.intake, LoadView())

    assert await asyncio.gather(*(forecast.expected_s(one) for one in "abab")) == [10, 20, 10, 20]
    clock.now_s += 0.5
    assert await forecast.expected_s("b") == 19.5
    assert busy.calls.count("read") == 1
    clock.now_s += 1
    assert await forecast.expected_s("b") == 20
    assert busy.calls.count("read") == 2


async def test_a_newcomer_is_worth_a_new_projection(busy, clock):
    await busy.accepted("a", **LIKE_ALL)
    forecast = WaitForecast(busy.intake, LoadView())
    await forecast.expected_s("a")
    await busy.accepted("b", **LIKE_ALL)

    assert await forecast.expected_s("b") is None
    clock.now_s += waits.NEWCOMER_FRESH_S * 1.1
    assert await forecast.expected_s("b") == 20


async def test_a_ledger_that_is_away_leaves_the_wait_unknown(busy, clock):
    await busy.accepted("a", **LIKE_ALL)
    busy.is_away = True

    assert await WaitForecast(busy.intake, LoadView()).expected_s("a") is None


async def test_connectors_of_a_substation_that_is_away_are_no_places(busy, clock):
    await busy.accepted("a", **LIKE_ALL)
    await busy.take(registration("gone", connectors=5))
    view = LoadView()
    lines = [
        {"substation": "north", "fresh": True, "has_lease": True, "status": "Operative"},
        {"substation": "lost", "fresh": True, "has_lease": False, "status": "Operative"},
        {"substation": "gone", "fresh": False, "has_lease": True, "status": "Operative"},
    ]
    view.take({"as_of_ms": 1, "source": "balancer", "substations": lines})

    assert await WaitForecast(busy.intake, view).expected_s("a") == 10
