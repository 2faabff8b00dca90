"""The sweep on virtual time, with a ledger whose writes take long; nobody beats any more."""

import asyncio
import contextlib

import pytest
from harness.ledger import registration
from harness.memory_ledger import START_MS, MemoryLedger
from harness.protocol.clockwork import Clock, Process, Timeline
from prometheus_client import CollectorRegistry

from balancer.metrics import BalancerMetrics
from balancer.sweeper import UNCLAIMED_AFTER_S, Sweeper
from services.errors import LedgerUnavailable
from services.ledger.leases import silence_s
from services.ledger.states import Status

LOCK_TIMEOUT_S = 3.0


class SlowLedger(MemoryLedger):
    """Its writes come one after another, as those of a process do, and each takes its time."""

    def __init__(self):
        super().__init__()
        self.takes_s = {}
        """Time of each kind of write; "any" stands for the others."""
        self.locked = set()
        """Keys of rows that somebody else holds: a write waits for them, and fails."""
        self._writer = asyncio.Lock()

    async def write(self, operation, rows):
        async with self._writer:
            if self.locked & {row[operation.key] for row in rows}:
                await asyncio.sleep(LOCK_TIMEOUT_S)
                raise LedgerUnavailable("PostgreSQL: canceling statement due to lock timeout")
            await asyncio.sleep(self.takes_s.get(operation.name, self.takes_s.get("any", 0)))
            return await super().write(operation, rows)


class Balancer(Process):
    """A process that only sweeps."""

    def __init__(self, timeline, ledger, lease_s):
        super().__init__(timeline, "balancer", Clock(timeline, 1.0, 100.0))
        metrics = BalancerMetrics(CollectorRegistry())
        self.start(Sweeper(ledger.sweeping, metrics, asyncio.Event(), lease_s).sweep_for_ever())


@pytest.fixture
def ledger():
    with contextlib.closing(SlowLedger()) as one:
        yield one


@pytest.fixture
def when(ledger, monkeypatch):
    """Sweep until something is so in the ledger; how long that took [s], None where it never came."""
    monkeypatch.setattr("balancer.sweeper.monotonic_s", lambda: asyncio.get_running_loop().time())

    def sweep(is_so, lease_s=5.0, within_s=120):
        timeline = Timeline()
        balancer = Balancer(timeline, ledger, lease_s)

        def is_over():
            ledger.now_ms = START_MS + round(timeline.now_s * 1000)
            return is_so() or timeline.now_s > within_s

        timeline.run_until(is_over)
        balancer.kill()
        return timeline.now_s if is_so() else None

    return sweep


def status(ledger, request_id):
    return ledger.rows("SELECT status FROM request WHERE id = ?", request_id)[0][0]


@pytest.mark.parametrize(
    ("takes_s", "lease_s"),
    [
        ({"any": 0.05}, 5.0),
        ({"any": 1.05}, 5.0),
        ({"any": 2.4}, 5.0),
        ({"any": 0.4}, 2.0),
        *(({"any": 0.05, slow: LOCK_TIMEOUT_S}, 5.0) for slow in ("lose_orphans", "expire", "lose", "take_back")),
    ],
)
def test_a_dead_substation_is_given_up_however_long_other_writes_take(ledger, when, takes_s, lease_s):
    async def prepare():
        await ledger.take(registration(), registration("south"))
        await ledger.claimed("a")
        await ledger.assigned("b", to="east")  # where nobody ever was

    asyncio.run(prepare())
    ledger.takes_s = takes_s

    took_s = when(lambda: status(ledger, "a") == Status.ACCEPTED, lease_s)

    # At most the looks' pace on top, and a round of all writes before the one that gives up, for each of the two.
    assert took_s is not None
    assert silence_s(lease_s) <= took_s <= silence_s(lease_s) + 1 + 2 * (3 * takes_s["any"] + max(takes_s.values()))


def test_a_substation_whose_row_is_locked_keeps_no_other_from_being_given_up(ledger, when):
    async def prepare():
        await ledger.take(registration(), registration("south"))
        await ledger.claimed("a", at="south")

    asyncio.run(prepare())
    ledger.locked = {"north"}

    took_s = when(lambda: status(ledger, "a") == Status.ACCEPTED)

    assert took_s is not None
    assert silence_s(5.0) <= took_s <= silence_s(5.0) + 1 + LOCK_TIMEOUT_S


@pytest.mark.parametrize("takes_s", [{"any": 2.0}, {"any": 0.05, "expire": 6.0}])
def test_an_assignment_is_taken_back_in_time_however_long_other_writes_take(ledger, when, takes_s):
    asyncio.run(ledger.assigned("a"))
    ledger.takes_s = takes_s

    took_s = when(lambda: status(ledger, "a") == Status.ACCEPTED)

    assert took_s is not None
    assert UNCLAIMED_AFTER_S <= took_s <= UNCLAIMED_AFTER_S + 1 + 3 * takes_s["any"] + max(takes_s.values())


@pytest.mark.parametrize("fails", ["lose_orphans", "expire", "lose"])
def test_a_step_that_fails_holds_up_none_of_the_others(ledger, when, fails):
    async def prepare():
        await ledger.take(registration())
        await ledger.assigned("a", to="east")

    asyncio.run(prepare())
    ledger.refused = {fails}

    took_s = when(lambda: status(ledger, "a") == Status.ACCEPTED)

    assert took_s is not None
    assert UNCLAIMED_AFTER_S <= took_s <= UNCLAIMED_AFTER_S + 1
