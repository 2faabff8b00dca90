import pytest

from services.errors import LedgerUnavailable
from services.ledger.records import Claimed, Claims, Heartbeat
from services.messages import Hint
from substations.heartbeat import _reconcile, beat
from substations.substation import Substation
from substations.worker import Worker


class Ledger:
    """Claims what is assigned, in the order of assignment; may lose its answers."""

    def __init__(self, *assigned, connectors=1):
        self.assigned = list(assigned)
        self.charging = {}
        self.declined = []
        self.connectors = connectors
        self.loses_answers = False

    async def claim(self, hints, substation, epoch, places):
        ours = [hint for hint in self.assigned if hint in hints]
        for hint in ours[: min(places, self.connectors - len(self.charging))]:
            self.assigned.remove(hint)
            self.charging[hint] = Claimed(*hint, substation, epoch, len(self.charging) + 1, 11_000, 3_600_000, 0)
        if self.loses_answers:
            raise LedgerUnavailable("unknown")
        return Claims(
            tuple(self.charging[hint] for hint in hints if hint in self.charging),
            tuple(hint for hint in self.assigned if hint in hints),
        )

    async def decline(self, hints, substation):
        self.declined += hints
        self.assigned = [hint for hint in self.assigned if hint not in hints]
        return {hint.request_id for hint in hints}

    async def end(self, endings):
        for one in endings:
            self.charging.pop(Hint(one.request_id, one.attempt))
        return {one.request_id: number for number, one in enumerate(endings, 1)}

    async def heartbeat(self, epochs, progress, older_than_ms):
        known = {one.request_id for one in progress}
        charging = tuple(one for hint, one in self.charging.items() if hint.request_id not in known)
        return [Heartbeat("north", 1, tuple(self.assigned), tuple(self.assigned), charging, ())]


def worker(ledger, bays=0):
    substation = Substation(
        id="north", rated_w=400_000, limit_w=304_000, connectors=ledger.connectors, bays=bays, epoch=1, speed=60,
        ticked_at_s=0.0,
    )  # fmt: skip
    return Worker(substation, ledger)


async def heartbeat(one, ledger, meanwhile=None):
    in_bays = tuple(one.substation.in_bays)
    [answer] = await beat({"north": one}, ledger)
    if meanwhile:
        await meanwhile
    await _reconcile(one, answer, in_bays, 0.0)


A, B, C, D = (Hint(name, 1) for name in "abcd")


async def test_what_finds_neither_connector_nor_bay_is_declined():
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

    await heartbeat(one, ledger, somebody_comes())

    assert one.substation.in_bays == [C]
