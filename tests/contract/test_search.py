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
