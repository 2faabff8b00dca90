"""A balancer's sweep and a `substations` process on virtual time, with a ledger whose writes take long."""

import asyncio
import itertools

from harness.ledger import registration
from harness.memory_ledger import START_MS, MemoryLedger
from harness.protocol.clockwork import Clock, Process, Timeline
from prometheus_client import CollectorRegistry

from balancer.metrics import BalancerMetrics
from balancer.sweeper import Sweeper
from services.errors import LedgerUnavailable
from substations.heartbeat import GRANT_BEATS, Host
from substations.substation import Substation
from substations.worker import Worker

LOCK_TIMEOUT_S = 3.0
HEARTBEAT_S, TICK_S, SPEED = 1.0, 0.2, 60
CLOCKED = ("balancer.sweeper", "substations.heartbeat", "substations.worker")


class SlowLedger(MemoryLedger):
    """The writes of a process come one after another, as those of its one writer do, and each takes its time."""

    def __init__(self):
        super().__init__()
        self.timeline = Timeline()
        self.processes = []
        self.takes_s = {}
        """Time of each kind of write; "any" stands for the others."""
        self.locked = set()
        """Keys of rows that somebody else holds: a write waits for them, and fails."""
        self.is_write_locked = False
        """Whether somebody else holds the lock that every write takes: a write waits for it, and fails in the end."""
        self._writers = {}

    async def write(self, operation, rows):
        async with self._writers.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
            if self.locked & {row[operation.key] for row in rows}:
                await asyncio.sleep(LOCK_TIMEOUT_S)
                raise LedgerUnavailable("PostgreSQL: canceling statement due to lock timeout")
            await self._wait_for_the_lock()
            await asyncio.sleep(self.takes_s.get(operation.name, self.takes_s.get("any", 0)))
            return await super().write(operation, rows)

    async def _wait_for_the_lock(self):
        gives_up_at = self.timeline.now_s + LOCK_TIMEOUT_S
        while self.is_write_locked:
            if self.timeline.now_s >= gives_up_at:
                raise LedgerUnavailable("SQLite: database is locked")
            await asyncio.sleep(0.05)

    def status(self, request_id):
        return self.rows("SELECT status FROM request WHERE id = ?", request_id)[0][0]

    def when(self, is_so, within_s=180):
        """Let time pass until something is so; the moment [s], None where it never came."""

        def is_over():
            self.now_ms = START_MS + round(self.timeline.now_s * 1000)
            return is_so() or self.timeline.now_s > within_s

        self.timeline.run_until(is_over)
        return self.timeline.now_s if is_so() else None

    def let_pass(self, pause_s):
        """Let so much time pass."""
        until_s = self.timeline.now_s + pause_s
        self.when(lambda: self.timeline.now_s >= until_s, until_s)


def let_sweep(ledger, lease_s=5.0):
    """Begin a process that only sweeps."""
    balancer = Process(ledger.timeline, "balancer", Clock(ledger.timeline, 1.0, 100.0))
    sweeper = Sweeper(ledger.sweeping, BalancerMetrics(CollectorRegistry()), asyncio.Event(), lease_s)
    ledger.processes.append(balancer)
    balancer.start(sweeper.sweep_for_ever())


class Hosting(Process):
    """A process that hosts substations: it beats for them and ticks."""

    _numbers = itertools.count(1)

    def __init__(self, ledger, *substations, lease_s=5.0):
        super().__init__(ledger.timeline, "substations", Clock(ledger.timeline, 1.0, 200.0))
        grant_s = round(GRANT_BEATS * HEARTBEAT_S * SPEED)
        self.workers = {
            one: Worker(
                Substation(
                    id=one, rated_w=380_000, limit_w=304_000, connectors=40, bays=10, speed=SPEED, grant_s=grant_s,
                    floor_w=1_380, ticked_at_s=self.clock.reading_s(),
                ),
                ledger.charging,
            )
            for one in substations
        }  # fmt: skip
        self.host = Host(
            self.workers, [registration(one) for one in substations], ledger.tenancy,
            holder=f"a process #{next(self._numbers)}", lease_s=lease_s, heartbeat_s=HEARTBEAT_S,
        )  # fmt: skip
        ledger.processes.append(self)
        self.start(self._live_on())

    async def _live_on(self):
        ticking = (one.tick_for_ever(TICK_S) for one in self.workers.values())
        await asyncio.gather(self.host.beat_for_ever(), *ticking)

    def substation(self, name):
        return self.workers[name].substation

    def is_charging(self, *request_ids):
        """Whether these get power now."""
        sessions = {one: it for worker in self.workers.values() for one, it in worker.substation.sessions.items()}
        return all(one in sessions and sessions[one].power_w > 0 for one in request_ids)
