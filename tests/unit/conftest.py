import asyncio
import contextlib

import pytest
from harness.ledger import histories_in
from harness.memory_ledger import MemoryLedger
from harness.slow_ledger import CLOCKED, SlowLedger

from services.ledger.states import faults


@pytest.fixture
def ledger():
    """A ledger in memory; whatever services do to it, every history must be sound afterwards."""
    with _sound_afterwards(MemoryLedger()) as one:
        yield one


@pytest.fixture
def slow_ledger(monkeypatch):
    """The same for processes on virtual time, with writes that may take long."""
    for module in CLOCKED:
        monkeypatch.setattr(f"{module}.monotonic_s", lambda: asyncio.get_running_loop().time())
    with _sound_afterwards(SlowLedger()) as one:
        yield one
        for process in one.processes:
            process.kill()


@contextlib.contextmanager
def _sound_afterwards(ledger):
    with contextlib.closing(ledger):
        yield ledger
        histories, _ = histories_in(ledger.execute)
        assert [fault for history in histories.values() for fault in faults(history)] == []
