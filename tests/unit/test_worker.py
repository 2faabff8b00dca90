import pytest

from services.errors import LedgerUnavailable
from services.ledger.records import Claimed, Heartbeat
from services.messages import Hint
from substations.heartbeat import beat
from substations.substation import Substation
from substations.worker import Worker


class Ledger:
    """Claims whatever is assigned; may lose its answers."""

    def __init__(self, *assigned):
        self.assigned = set(assigned)
        self.charging = {}
        self.declined = []
        self.loses_answers = False

    async def claim(self, hints, substation, epoch):
        for hint in hints:
            if hint in self.assigned:
                self.assigned.discard(hint)
                self.charging[hint] = Claimed(*hint, substation, epoch, len(self.charging) + 1, 11_000, 3_600_000, 0)
        if self.loses_answers:
            raise LedgerUnavailable("unknown")
        return [self.charging[hint] for hint in hints if hint in self.charging]

    async def decline(self, hints, substation):
        self.declined += hints
        return {hint.request_id for hint in hints}

    async def heartbeat(self, epochs, progress, older_than_ms):
        known = {one.request_id for one in progress}
        charging = tuple(one for hint, one in self.charging.items() if hint.request_id not in known)
        return [Heartbeat("north", 1, (), charging, ())]


def worker(ledger, connectors=1):
    substation = Substation(
        id="north", rated_w=400_000, limit_w=304_000, connectors=connectors, epoch=1, speed=60, ticked_at_s=0.0
    )
    return Worker(substation, ledger)


A, B, C = Hint("a", 1), Hint("b", 1), Hint("c", 1)


async def test_what_finds_no_connector_is_declined():
    ledger = Ledger(A, B, C)
    one = worker(ledger, connectors=2)

    await one.take_in([A, B, C])

    assert set(one.substation.sessions) == {"a", "b"}
    assert ledger.declined == [C]


async def test_stale_hints_take_no_connector_from_those_behind_them():
    ledger = Ledger(C)
    one = worker(ledger)

    await one.take_in([A, B, C])

    assert set(one.substation.sessions) == {"c"}
    assert ledger.declined == []


async def test_a_claim_without_an_answer_keeps_its_connector_and_a_second_try_starts_it():
    ledger = Ledger(A, B)
    one = worker(ledger)
    ledger.loses_answers = True
    with pytest.raises(LedgerUnavailable):
        await one.take_in([A])
    assert one.substation.free_connectors == 0
    ledger.loses_answers = False

    await one.take_in([B])
    assert (set(one.substation.sessions), ledger.declined) == (set(), [B])

    await one.take_in([A])
    assert set(one.substation.sessions) == {"a"}
    assert one.substation.free_connectors == 0


@pytest.mark.parametrize("was_claimed", [True, False])
async def test_a_heartbeat_tells_what_became_of_a_claim_without_an_answer(was_claimed):
    ledger = Ledger(*([A] if was_claimed else []))
    one = worker(ledger)
    ledger.loses_answers = True
    with pytest.raises(LedgerUnavailable):
        await one.take_in([A])
    unanswered = set(one.unanswered)

    [answer] = await beat({"north": one}, ledger)
    one.substation.adopt(answer.charging, 0.0)
    one.forget_unanswered(unanswered)

    assert set(one.substation.sessions) == ({"a"} if was_claimed else set())
    assert one.substation.free_connectors == (0 if was_claimed else 1)
    assert one.unanswered == set()
