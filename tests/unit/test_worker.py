import asyncio
import math

import pytest

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger.leases import Lease
from services.ledger.records import Claimed, Claims, Heartbeat, Orders, Registration
from services.messages import Hint
from substations.heartbeat import Host
from substations.substation import Substation
from substations.worker import Worker

ORDERS = Orders(0, 304_000, operative=True)


class Ledger:
    """Claims what is assigned, in the order of assignment; may lose its answers."""

    def __init__(self, *assigned, connectors=1):
        self.assigned = list(assigned)
        self.charging = {}
        self.declined = []
        self.connectors = connectors
        self.loses_answers = False

    async def claim(self, hints, substation, epoch, places, *, in_bays, grant_s):
        ours = [hint for hint in self.assigned if hint in hints]
        for hint in ours[: min(places, self.connectors - len(self.charging))]:
            self.assigned.remove(hint)
            self.charging[hint] = Claimed(
                *hint, substation, epoch, len(self.charging) + 1, 11_000, 3_600_000, 0, 3_600_000
            )
        if self.loses_answers:
            raise LedgerUnavailable("unknown")
        return Claims(
            tuple(self.charging[hint] for hint in hints if hint in self.charging),
            tuple(hint for hint in self.assigned if hint in hints),
        )

    async def decline(self, hints, substation, reason):
        self.declined += hints
        self.reason = reason
        self.assigned = [hint for hint in self.assigned if hint not in hints]
        return {hint.request_id for hint in hints}

    async def end(self, endings):
        for one in endings:
            self.charging.pop(Hint(one.request_id, one.attempt))
        return {one.request_id: number for number, one in enumerate(endings, 1)}

    async def beat(self, beats, adopt_after_ms):
        answer = [
            Heartbeat("north", 1, tuple(self.assigned), tuple(self.assigned), tuple(self.charging.values()), ORDERS)
        ]
        await self.meanwhile()
        return answer

    async def meanwhile(self):
        """What happens before the answer to a beat arrives."""


def worker(ledger, bays=0):
    substation = Substation(
        id="north", rated_w=400_000, limit_w=304_000, connectors=ledger.connectors, bays=bays, epoch=1, speed=60,
        ticked_at_s=0.0, fence_at_s=math.inf,
    )  # fmt: skip
    return Worker(substation, ledger)


REGISTRATION = Registration("north", None, 400_000, 304_000, 1, 0, "http://127.0.0.1:1")


def host(one, ledger):
    return Host({"north": one}, [REGISTRATION], ledger, holder="me #1", lease_s=5, heartbeat_s=1)


async def heartbeat(one, ledger):
    await host(one, ledger).beat()
    await asyncio.gather(*one._tasks)


A, B, C, D = (Hint(name, 1) for name in "abcd")


async def test_failure_15_what_finds_neither_connector_nor_bay_is_declined():
    ledger = Ledger(A, B, C, D, connectors=2)
    one = worker(ledger, bays=1)

    await one.take_in([A, B, C, D])

    assert set(one.substation.sessions) == {"a", "b"}
    assert one.substation.in_bays == [C]
    assert ledger.declined == [D]


async def test_stale_hints_take_no_place_from_those_behind_them():
    ledger = Ledger(C)
    one = worker(ledger)

    await one.take_in([A, B, C])

    assert set(one.substation.sessions) == {"c"}
    assert ledger.declined == []


async def test_the_next_free_connector_is_taken_from_a_bay_in_the_ledgers_order():
    ledger = Ledger(A, B, C)
    one = worker(ledger, bays=2)
    await one.take_in([C, A])
    await one.take_in([B])
    assert (set(one.substation.sessions), set(one.substation.in_bays)) == ({"a"}, {B, C})

    one.substation.stop([("a", 1)])
    await one._end(one.substation.tick(1.0))

    assert (set(one.substation.sessions), one.substation.in_bays) == ({"b"}, [C])


async def test_a_process_that_leaves_claims_nobody_more():
    ledger = Ledger(A, B)
    one = worker(ledger, bays=1)
    await one.take_in([A, B])
    one.substation.stop([("a", 1)])
    endings = one.substation.tick(1.0)

    one.leave()
    await one.settle()
    await one._end(endings)

    assert (one.substation.sessions, ledger.charging, ledger.assigned) == ({}, {}, [B])


async def test_who_comes_does_not_overtake_who_stands_in_a_bay():
    ledger = Ledger(A, C)
    one = worker(ledger, bays=1)
    await one.take_in([A, C])
    ledger.assigned.insert(0, B)  # more urgent than the one in the bay

    await one.take_in([B])

    assert (one.substation.in_bays, ledger.declined) == ([C], [B])


async def test_asking_again_after_a_lost_answer_fills_no_connector_twice():
    ledger = Ledger(A, B)
    one = worker(ledger, bays=1)
    ledger.loses_answers = True
    with pytest.raises(LedgerUnavailable):
        await one.take_in([A])
    ledger.loses_answers = False

    await one.take_in([B])
    assert (set(one.substation.sessions), one.substation.in_bays) == (set(), [B])

    await one.take_in([A])
    assert (set(one.substation.sessions), one.substation.in_bays) == ({"a"}, [B])


async def test_a_heartbeat_tells_what_a_claim_without_an_answer_has_claimed():
    ledger = Ledger(A)
    one = worker(ledger)
    ledger.loses_answers = True
    with pytest.raises(LedgerUnavailable):
        await one.take_in([A])

    await heartbeat(one, ledger)

    assert set(one.substation.sessions) == {"a"}


async def test_a_heartbeat_brings_what_no_message_brought_and_leaves_the_bays_alone():
    ledger = Ledger(A, B, C)
    one = worker(ledger, bays=2)
    await one.take_in([A, B])

    await heartbeat(one, ledger)

    assert (set(one.substation.sessions), one.substation.in_bays) == ({"a"}, [B, C])
    assert ledger.declined == []


async def test_a_heartbeat_empties_the_bay_of_who_was_cancelled_but_not_of_who_came_meanwhile():
    ledger = Ledger(A, B, connectors=1)
    one = worker(ledger, bays=2)
    await one.take_in([A, B])
    ledger.assigned.remove(B)

    async def somebody_comes():
        ledger.assigned.append(C)
        one.substation.in_bays.append(C)

    ledger.meanwhile = somebody_comes
    await host(one, ledger).beat()

    assert one.substation.in_bays == [C]


class Leases:
    """A ledger's lease of one substation, as a process sees it that wants it."""

    def __init__(self, lease=None):
        self.lease = lease
        self.loses_answers = False

    async def wait_for(self, substations, heir):
        return {} if self.lease is None else {"north": self.lease}

    async def take(self, registrations, seen, holder):
        assert seen.get("north") == self.lease
        self.lease = Lease("north", self.lease.epoch + 1 if self.lease else 1, 0, holder, is_released=False)
        if self.loses_answers:
            raise LedgerUnavailable("unknown")
        return {"north": self.lease.epoch}

    async def beat(self, beats, adopt_after_ms):
        ours = [one for one in beats if (one.epoch, one.holder) == (self.lease.epoch, self.lease.holder)]
        return [Heartbeat("north", one.epoch, (), (), (), ORDERS) for one in ours]


class Clock:
    def __init__(self, monkeypatch):
        self.now_s = 1_000.0
        monkeypatch.setattr("substations.heartbeat.monotonic_s", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def unheld():
    one = worker(Ledger())
    one.substation.lose()
    return one


HELD = Lease("north", 4, 17, "substations-1 (process 7 on here) #abc", is_released=False)


@pytest.mark.parametrize(
    "lease", [None, Lease("north", 4, 17, None, is_released=False), Lease("north", 4, 17, "x", is_released=True)]
)
async def test_a_lease_that_nobody_holds_is_taken_at_once_and_stands_still_until_it_is_renewed(clock, lease):
    one, ledger = unheld(), Leases(lease)
    process = host(one, ledger)

    await process.take()
    assert one.substation.is_held
    assert one.substation.is_fenced(clock.now_s)
    assert not process.all_held.is_set()

    await process.beat()
    assert process.all_held.is_set()
    assert not one.substation.is_fenced(clock.now_s + 4.99)
    assert one.substation.is_fenced(clock.now_s + 5.0)


async def test_a_lease_that_stands_still_is_taken_after_lease_and_margin_and_not_before(clock):
    one, ledger = unheld(), Leases(HELD)
    process = host(one, ledger)
    for _ in range(24):
        await process.take()
        assert not one.substation.is_held
        clock.now_s += 0.25
    await process.take()

    assert one.substation.epoch == 5


async def test_a_process_whose_like_is_alive_gives_up_and_names_it(clock):
    one, ledger = unheld(), Leases(HELD)
    process = host(one, ledger)
    await process.take()
    clock.now_s += 1
    ledger.lease = Lease("north", 4, 18, HELD.holder, is_released=False)

    with pytest.raises(Misconfigured, match=r"substations-1 \(process 7 on here\), which is alive"):
        await process.take()


async def test_a_taking_whose_answer_was_lost_is_recognised(clock):
    one, ledger = unheld(), Leases()
    process = host(one, ledger)
    ledger.loses_answers = True
    with pytest.raises(LedgerUnavailable):
        await process.take()

    await process.take()
    await process.beat()

    assert (one.substation.epoch, process.all_held.is_set()) == (1, True)


async def test_a_process_that_lost_its_lease_drops_everything(clock):
    one, ledger = unheld(), Leases()
    process = host(one, ledger)
    await process.take()
    await process.beat()
    one.substation.start(Claimed("a", 1, "north", 1, 1, 11_000, 3_600_000, 0, 3_600_000), clock.now_s)
    ledger.lease = Lease("north", 2, 9, None, is_released=False)

    await process.beat()

    assert (one.substation.is_held, one.substation.sessions) == (False, {})
    assert one.substation.is_fenced(clock.now_s)


async def test_the_fence_counts_from_when_the_beat_was_sent_not_from_its_answer(clock):
    one, ledger = unheld(), Leases()
    process = host(one, ledger)
    await process.take()
    beat = ledger.beat

    async def slow_beat(beats, adopt_after_ms):
        clock.now_s += 3
        return await beat(beats, adopt_after_ms)

    ledger.beat = slow_beat
    await process.beat()

    assert one.substation.fence_at_s == clock.now_s - 3 + 5


async def test_nothing_is_taken_in_behind_the_fence():
    ledger = Ledger(A)
    one = worker(ledger)
    one.substation.fence_at_s = -math.inf

    await one.take_in([A])

    assert ledger.assigned == [A]


async def test_a_substation_that_is_drained_sends_back_who_stands_in_its_bays():
    ledger = Ledger(A, B)
    one = worker(ledger, bays=1)
    await one.take_in([A, B])
    assert one.substation.in_bays == [B]

    one.substation.orders = Orders(1, 304_000, operative=False)
    await one.serve_bays()

    assert (one.substation.in_bays, ledger.declined, ledger.reason) == ([], [B], "drained")
    assert set(one.substation.sessions) == {"a"}


async def test_orders_are_told_as_applied_without_waiting_for_the_next_beat(clock):
    one, ledger = unheld(), Leases()
    process = host(one, ledger)
    await process.take()
    await process.beat()
    assert process._is_hurried()

    one.substation.tick(clock.now_s)
    await process.beat()
    assert not process._is_hurried()
