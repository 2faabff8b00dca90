import asyncio

from gateway import waits
from gateway.forecast import ENDS_NEEDED
from gateway.load_view import LoadView
from gateway.waits import WaitForecast
from services.errors import LedgerUnavailable
from services.ledger.records import Outlook, PastSession, Place, Queued


class Ledger:
    """One connector that frees after ten seconds, and whoever waits for it."""

    def __init__(self, *waiting):
        self.waiting = waiting
        self.asked = 0
        self.away = False
        self.remembers_one_that_is_gone = False

    async def outlook(self, *, waiting_most, ends_most, ends_within_ms):
        self.asked += 1
        if self.away:
            raise LedgerUnavailable("away")
        return Outlook(
            (Place("gone", None, 5), Place("north", None, 1))
            if self.remembers_one_that_is_gone
            else (Place("north", None, 1),),
            (Queued("x", "north", None, 10_000, 1_000, 0, None),),
            (),
            tuple(Queued(one, None, None, 10_000, 1_000, 10**9, None) for one in self.waiting),
            (PastSession(10_000, 1_000, 10_000),) * ENDS_NEEDED,
        )


class Clock:
    def __init__(self, monkeypatch):
        self.now_s = 500.0
        monkeypatch.setattr(waits, "monotonic_s", lambda: self.now_s)


async def test_one_projection_serves_everybody_for_a_second(monkeypatch):
    clock = Clock(monkeypatch)
    ledger = Ledger("a", "b")
    forecast = WaitForecast(ledger, LoadView())

    assert await asyncio.gather(*(forecast.expected_s(one) for one in "abab")) == [10, 20, 10, 20]
    clock.now_s += 0.5
    assert await forecast.expected_s("b") == 19.5
    assert ledger.asked == 1
    clock.now_s += 1
    assert await forecast.expected_s("b") == 20
    assert ledger.asked == 2


async def test_a_newcomer_is_worth_a_new_projection(monkeypatch):
    clock = Clock(monkeypatch)
    ledger = Ledger("a")
    forecast = WaitForecast(ledger, LoadView())
    await forecast.expected_s("a")
    ledger.waiting = ("a", "b")

    assert await forecast.expected_s("b") is None
    clock.now_s += waits.NEWCOMER_FRESH_S * 1.1
    assert await forecast.expected_s("b") == 20


async def test_a_ledger_that_is_away_leaves_the_wait_unknown(monkeypatch):
    Clock(monkeypatch)
    ledger = Ledger("a")
    ledger.away = True

    assert await WaitForecast(ledger, LoadView()).expected_s("a") is None


async def test_connectors_of_a_substation_that_is_away_are_no_places(monkeypatch):
    Clock(monkeypatch)
    ledger = Ledger("a")
    ledger.remembers_one_that_is_gone = True
    view = LoadView()
    lines = [
        {"substation": "north", "fresh": True, "has_lease": True, "status": "Operative"},
        {"substation": "lost", "fresh": True, "has_lease": False, "status": "Operative"},
        {"substation": "gone", "fresh": False, "has_lease": True, "status": "Operative"},
    ]
    view.take({"as_of_ms": 1, "source": "balancer", "substations": lines})

    assert await WaitForecast(ledger, view).expected_s("a") == 10
