"""Processes without an id on one ledger: each takes a substation of its own, whoever is fast or slow."""

import asyncio
import contextlib

import pytest
from harness.ledger import Ledger, opened, registration

from services.errors import LedgerUnavailable
from services.grid import load_grid
from services.ledger.records import Beat
from substations.choice import Chooser
from substations.search import Search

LEASE_S, BEAT_S, LOOK_S = 3.0, 0.2, 0.05
LATE_BEAT_S = 4 * BEAT_S
"""What the chooser takes for a beat: those of a busy machine are late."""
GRID = ["north", "east", "south", "west"]
HOLDERS = [f"process {number} #{number}" for number in range(7)]


class Process:
    """One that looks for a substation, and then beats for it until it is killed."""

    def __init__(self, ledger, holder):
        self.ledger = ledger
        self.holder = holder
        self.taken = None
        chooser = Chooser(load_grid("default"), lease_s=LEASE_S, heartbeat_s=LATE_BEAT_S)
        self.search = Search(ledger.tenancy, chooser, registration, holder)
        self.task = asyncio.create_task(self._live())

    async def _live(self):
        self.taken = await self.search.until_taken(LOOK_S)
        while True:
            epoch = next(one.epoch for one in await self.ledger.tenancy.leases() if one.substation == self.taken)
            assert await self.ledger.beat(at=self.taken, epoch=epoch, holder=self.holder) is not None
            await asyncio.sleep(BEAT_S)

    async def until_taken(self):
        async with asyncio.timeout(60):
            while self.taken is None:
                assert not self.task.done(), self.task.result()
                await asyncio.sleep(0.01)
        return self.taken

    async def kill(self):
        self.task.cancel()
        await asyncio.wait({self.task})

    async def leave(self):
        await self.kill()
        epoch = next(one.epoch for one in await self.ledger.tenancy.leases() if one.substation == self.taken)
        assert await self.ledger.tenancy.release([Beat(self.taken, epoch, self.holder, (), (), 0)]) == {self.taken}


@pytest.fixture
async def processes(path):
    """Starts processes, each with its own connection to an empty ledger; all are gone at the end."""
    started = []
    async with contextlib.AsyncExitStack() as stack:

        async def start(*holders):
            ledgers = [Ledger(await stack.enter_async_context(opened(path))) for _ in holders]
            new = [Process(ledger, holder) for ledger, holder in zip(ledgers, holders, strict=True)]
            started.extend(new)
            return new

        yield start
        for one in started:
            await one.kill()


async def taken_by(processes):
    return sorted([await one.until_taken() for one in processes])


async def test_each_of_many_that_start_at_once_takes_its_own_and_extras_are_made_for_the_rest(processes):
    assert await taken_by(await processes(*HOLDERS)) == sorted([*GRID, "extra-1", "extra-2", "extra-3"])


async def test_all_killed_and_started_again_take_the_same_back_and_no_extra_is_made(processes):
    first = await processes(*HOLDERS[:4])
    await taken_by(first)
    for one in first:
        await one.kill()

    again = await processes(*(f"{one} again" for one in HOLDERS[:4]))

    assert await taken_by(again) == sorted(GRID)
    epochs = {one.substation: one.epoch for one in await again[0].ledger.tenancy.leases()}
    assert epochs == dict.fromkeys(GRID, 2)


async def test_one_that_left_is_taken_by_the_next_whether_of_the_grid_file_or_extra(processes):
    first = await processes(*HOLDERS[:6])
    await taken_by(first)
    leaving = [one for one in first if one.taken in ("south", "extra-1")]
    for one in leaving:
        await one.leave()

    assert await taken_by(await processes("next #1", "next #2")) == ["extra-1", "south"]


async def test_of_the_living_nobody_becomes_heir_and_of_the_dead_the_one_who_comes(processes):
    first = await processes(*HOLDERS[:4])
    await taken_by(first)
    victim = next(one for one in first if one.taken == "east")
    await victim.kill()

    [successor] = await processes("successor #1")
    heirs = set()
    while successor.taken is None:
        heirs |= {(one.substation, one.heir) for one in await victim.ledger.tenancy.leases() if one.heir is not None}
        await asyncio.sleep(LOOK_S)

    assert (successor.taken, heirs) == ("east", {("east", "successor #1")})


class Looks:
    """Searches on one ledger that look when the test says so, by its clock; whoever held the grid's four is dead."""

    def __init__(self, ledger, monkeypatch):
        self.ledger = ledger
        self._now_s = 1_000.0
        self._searches = {}
        self.taken = {}
        monkeypatch.setattr("substations.search.monotonic_s", lambda: self._now_s)

    def start(self, holder):
        chooser = Chooser(load_grid("default"), lease_s=LEASE_S, heartbeat_s=BEAT_S)
        self._searches[holder] = Search(self.ledger.tenancy, chooser, registration, holder)

    async def until(self, is_so):
        """Look until it is so of the heirs by substation; those heirs."""
        for _ in range(200):
            for holder, search in self._searches.items():
                if holder not in self.taken and (taken := await search.look()) is not None:
                    self.taken[holder] = taken
            heirs = {one.substation: one.heir for one in await self.ledger.tenancy.leases() if one.heir}
            if is_so(heirs):
                return heirs
            self._now_s += LOOK_S
        raise AssertionError(heirs)


@pytest.fixture
async def looks(path, monkeypatch):
    async with opened(path) as connection:
        ledger = Ledger(connection)
        await ledger.take(*(registration(one) for one in GRID))
        yield Looks(ledger, monkeypatch)


async def test_who_has_taken_one_is_heir_of_no_other(looks):
    looks.start("first")
    await looks.until(lambda heirs: heirs == dict.fromkeys(GRID, "first"))

    assert await looks.until(lambda _: "first" in looks.taken) == {}


async def test_what_others_wait_for_has_its_heir_also_when_the_first_has_taken_one(looks):
    looks.start("first")
    await looks.until(lambda heirs: heirs == dict.fromkeys(GRID, "first"))
    looks.start("second")
    await looks.until(lambda heirs: heirs == dict.fromkeys(GRID, "second"))

    heirs = await looks.until(lambda _: "first" in looks.taken)

    assert looks.taken == {"first": "north"}
    assert heirs == dict.fromkeys(GRID[1:], "second")


async def test_who_finds_its_taking_by_a_later_look_is_heir_of_no_other_either(looks):
    looks.start("first")
    await looks.until(lambda heirs: heirs == dict.fromkeys(GRID, "first"))
    await looks.ledger.tenancy.take(
        [registration("north")], {one.substation: one for one in await looks.ledger.tenancy.leases()}, "first"
    )

    assert await looks.until(lambda _: "first" in looks.taken) == {}


async def test_one_is_kept_though_the_ledger_goes_away_after_its_taking(looks):
    async def unavailable(_heir):
        raise LedgerUnavailable("away")

    looks.ledger.tenancy.stop_waiting = unavailable
    looks.start("first")

    assert await looks.until(lambda _: "first" in looks.taken) == dict.fromkeys(GRID[1:], "first")


async def test_a_taking_whose_answer_was_lost_is_found_again(processes, path):
    async with opened(path) as connection:
        ledger = Ledger(connection)
        take = ledger.tenancy.take

        async def lost(*arguments):
            await take(*arguments)
            raise LedgerUnavailable("unknown")

        ledger.tenancy.take = lost
        one = Process(ledger, HOLDERS[0])
        assert await one.until_taken() == "north"
        [lease] = await ledger.tenancy.leases()
        assert (lease.substation, lease.epoch, lease.holder) == ("north", 1, HOLDERS[0])
        await one.kill()
