"""The load table's refresh: readings and the ledger's answer about exactly these replace it together."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from balancer.load_table import LoadTable
from balancer.metrics import BalancerMetrics
from balancer.readings import Reading
from balancer.watcher import Watcher
from services.clock import monotonic_s
from services.errors import BrokerUnavailable, LedgerUnavailable, Unroutable
from services.ledger.records import Known, RegisteredSubstation, Unseen

PATIENCE_S = 10


class Ledger:
    """Answers what the test says; `meanwhile` happens while it is being asked."""

    def __init__(self):
        self.asked = []
        self.told = []
        self.lines = []
        self.fault = None
        self.meanwhile = lambda: None

    async def unseen(self, known):
        self.asked.append(list(known))
        self.meanwhile()
        if self.fault:
            raise self.fault
        return self.told

    async def registry(self):
        return self.lines


class Scraper:
    """Is told whom to scrape."""

    def __init__(self):
        self.followed = asyncio.Event()

    def follow(self, registry):
        self.followed.set()


class Parts:
    def __init__(self):
        self.ledger, self.table = Ledger(), LoadTable()
        self.watcher = Watcher(self.ledger, self.table, BalancerMetrics(CollectorRegistry()), 3.0)

    async def register(self, *lines):
        """The registry has these from now on, and the watcher has read it."""
        self.ledger.lines = list(lines)
        scraper = Scraper()
        following = asyncio.create_task(self.watcher.follow_registry(scraper))
        async with asyncio.timeout(PATIENCE_S):
            await scraper.followed.wait()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    def scraped(self, sequence, *, demand_w=0.0, claims_total=0, of="north", epoch=1, at="http://127.0.0.1:1"):
        self.watcher.take(
            at,
            {
                of: Reading(
                    of, epoch, sequence, 0.0, demand_w, 304_000.0, 1_380.0, 0, 40, 10, claims_total, 0,
                    operative=True, taken_at_s=monotonic_s(),
                )
            },
        )  # fmt: skip


NORTH = RegisteredSubstation("north", "hills", 1, "http://127.0.0.1:1", has_lease=True)


@pytest.fixture
async def parts():
    one = Parts()
    await one.register(NORTH)
    return one


async def test_the_ledger_is_asked_about_the_readings_that_it_then_completes(parts):
    parts.scraped(1, demand_w=50_000.0, claims_total=7)
    parts.ledger.told = [Unseen("r", 1, "north", 11_000, 1)]

    await parts.watcher.refresh()

    assert parts.ledger.asked == [[Known("north", 1, 7, 0)]]
    [one] = parts.watcher.estimates()
    assert (one.demand_w, one.in_flight, one.zone, one.fresh) == (61_000, 1, "hills", True)
    assert parts.watcher.look_again.is_set()


async def test_what_is_assigned_while_the_ledger_is_asked_counts_though_the_answer_lacks_it(parts):
    parts.scraped(1)
    await parts.watcher.refresh()
    parts.table.reserve("r", 1, "north", 11_000)
    parts.ledger.meanwhile = lambda: parts.table.commit("r", 1)

    await parts.watcher.refresh()

    assert parts.watcher.estimate("north").demand_w == 11_000


@pytest.mark.parametrize("comes_meanwhile", [False, True])
async def test_readings_wait_for_a_ledger_that_is_away_and_newer_ones_replace_them(parts, comes_meanwhile):
    parts.scraped(1, demand_w=1_000.0)
    parts.ledger.fault = LedgerUnavailable("away")
    if comes_meanwhile:
        parts.ledger.meanwhile = lambda: parts.scraped(2, demand_w=2_000.0)
    with pytest.raises(LedgerUnavailable):
        await parts.watcher.refresh()
    assert parts.watcher.estimates() == []
    assert not parts.watcher.look_again.is_set()

    parts.ledger.fault, parts.ledger.meanwhile = None, lambda: None
    await parts.watcher.refresh()

    assert parts.watcher.estimate("north").demand_w == (2_000 if comes_meanwhile else 1_000)


async def test_a_substation_without_a_lease_is_known_as_such_and_a_stranger_not_at_all(parts):
    parts.scraped(1)
    await parts.watcher.refresh()
    assert parts.watcher.estimate("north").has_lease

    await parts.register(RegisteredSubstation("north", "hills", 2, "", has_lease=False))
    await parts.watcher.refresh()
    assert not parts.watcher.estimate("north").has_lease

    await parts.register()
    await parts.watcher.refresh()
    assert parts.watcher.estimates() == []


SOUTH = RegisteredSubstation("south", "hills", 1, "http://127.0.0.1:2", has_lease=True)


@pytest.mark.parametrize(
    "lie",
    [
        {"of": "north", "epoch": 900, "at": SOUTH.metrics_url},
        {"of": "north", "epoch": 1, "at": SOUTH.metrics_url},
        {"of": "north", "epoch": 1, "at": "http://127.0.0.1:3"},
        {"of": "north", "epoch": 2, "at": NORTH.metrics_url},
        {"of": "nobody", "epoch": 1, "at": NORTH.metrics_url},
    ],
    ids=["another's, far ahead", "another's", "from nowhere", "its own, ahead", "a stranger's"],
)
async def test_a_wrong_line_counts_nowhere_and_true_readings_go_on_counting(parts, lie):
    await parts.register(NORTH, SOUTH)
    parts.scraped(1, demand_w=1_000.0)
    parts.scraped(1_000, demand_w=2_000.0, **lie)
    await parts.watcher.refresh()
    assert {one.substation: one.demand_w for one in parts.watcher.estimates()} == {"north": 1_000}

    parts.scraped(2, demand_w=3_000.0)
    parts.scraped(1, of="south", at=SOUTH.metrics_url)
    await parts.watcher.refresh()
    assert {one.substation: one.demand_w for one in parts.watcher.estimates()} == {"north": 3_000, "south": 0}


async def test_a_page_full_of_wrong_names_becomes_a_short_line(parts):
    template = {"epoch": 1, "sequence": 1, "operative": True, "taken_at_s": 0.0}
    numbers = dict.fromkeys(
        (one for one in Reading.__dataclass_fields__ if one not in template and one != "substation"), 0
    )
    names = ["north", *(f"{number:03d}" + "x" * 1_000 for number in range(300))]

    with capture_logs() as said:
        parts.watcher.take(NORTH.metrics_url, {one: Reading(one, **template, **numbers) for one in names})

    [line] = [one for one in said if one["event"] == "readings_not_counted"]
    assert line["readings"] == 300
    assert line["substations"] == [f"00{number}" + "x" * 61 for number in range(5)]


async def test_a_new_epoch_counts_as_soon_as_it_is_registered(parts):
    parts.scraped(7, demand_w=1_000.0)
    await parts.watcher.refresh()
    await parts.register(RegisteredSubstation("north", "hills", 2, "http://127.0.0.1:9", has_lease=True))

    parts.scraped(1, demand_w=2_000.0, epoch=2, at="http://127.0.0.1:9")
    await parts.watcher.refresh()

    assert parts.watcher.estimate("north").demand_w == 2_000


@pytest.mark.parametrize("fault", [BrokerUnavailable("away"), Unroutable("nobody listens")])
async def test_a_broker_that_does_not_take_the_load_table_is_away_until_it_does(parts, fault):
    faults, told = [fault, None], asyncio.Event()
    seen = []

    async def tell(_table):
        seen.append(parts.watcher.is_broker_away)
        if not faults:
            told.set()
        elif (one := faults.pop(0)) is not None:
            raise one

    telling = asyncio.create_task(parts.watcher.publish_for_ever(tell, list, 0))
    async with asyncio.timeout(20):
        await told.wait()
    telling.cancel()

    assert seen[:3] == [False, True, False]
