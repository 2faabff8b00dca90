"""A substation's worker whose ledger answers late, or not at all."""

import asyncio
import contextlib
import math

from services.errors import LedgerUnavailable
from services.ledger.records import Claimed, Claims
from services.messages import Hint
from substations.substation import Substation
from substations.worker import Worker

PATIENCE_S = 10
TICK_S = 0.005
A, B = Hint("a", 1), Hint("b", 1)


class Ticks:
    """Counts them, as a tick log is told of each."""

    def __init__(self):
        self.count = 0

    def write(self, _substation):
        self.count += 1


class Ledger:
    """Answers what the test says; `meanwhile` is awaited before each answer."""

    def __init__(self):
        self.asked = []
        self.claims = Claims((), ())
        self.ends = []
        self.declined = []

    async def meanwhile(self):
        """What happens before the answer arrives."""

    async def claim(self, hints, substation, epoch, places, *, usable, in_bays, grant_s):
        self.asked += hints
        await self.meanwhile()
        return self.claims

    async def end(self, endings):
        self.ends.append([one.request_id for one in endings])
        await self.meanwhile()
        return {one.request_id: 1 for one in endings}

    async def decline(self, hints, substation, reason):
        self.declined += hints
        return {hint.request_id for hint in hints}


def claimed(epoch=1):
    return Claimed(*A, "north", epoch, 1, 11_000, 1, 0, 1)


def worker(ledger, ticks=None):
    return Worker(
        Substation(
            id="north", rated_w=400_000, limit_w=304_000, connectors=1, bays=1, epoch=1, speed=60, ticked_at_s=0.0,
            fence_at_s=math.inf,
        ),
        ledger,
        tick_log=ticks,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def ticking(one):
    """A worker that has a session of one joule, and ticks."""
    assert one.substation.start(claimed(), 0.0)
    task = asyncio.create_task(one.tick_for_ever(TICK_S))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await one.settle()


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(TICK_S)


async def test_an_end_that_could_not_be_written_keeps_its_connector_and_is_written_by_a_later_tick():
    ledger = Ledger()
    one = worker(ledger)
    connectors_free = []

    async def fail_twice():
        connectors_free.append(one.substation.free_connectors)
        if len(ledger.ends) <= 2:
            raise LedgerUnavailable("away")

    ledger.meanwhile = fail_twice
    async with ticking(one):
        await until(lambda: not one.substation.sessions)

    assert ledger.ends == [["a"]] * 3
    assert connectors_free == [0] * 3
    assert one.substation.free_connectors == 1


async def test_an_end_that_is_being_written_is_not_written_again_by_the_ticks_that_follow():
    ledger, ticks = Ledger(), Ticks()
    one = worker(ledger, ticks)
    may_answer = asyncio.Event()
    ledger.meanwhile = may_answer.wait
    async with ticking(one):
        await until(lambda: ledger.ends)
        ticks_before = ticks.count
        await until(lambda: ticks.count > ticks_before + 3)
        may_answer.set()
        await until(lambda: not one.substation.sessions)

    assert ledger.ends == [["a"]]


async def test_the_answer_to_a_claim_of_a_tenure_that_is_over_changes_nothing():
    ledger = Ledger()
    one = worker(ledger)
    ledger.claims = Claims((claimed(),), (B, Hint("c", 1)))

    async def lose_the_lease():
        one.substation.begin(2)

    ledger.meanwhile = lose_the_lease
    await one.take_in([A, B])

    assert (one.substation.sessions, one.substation.in_bays, ledger.declined) == ({}, [], [])


async def test_a_process_that_leaves_takes_nobody_in():
    ledger = Ledger()
    one = worker(ledger)
    one.leave()

    await one.take_in([A])

    assert ledger.asked == []
