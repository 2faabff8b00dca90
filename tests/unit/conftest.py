import contextlib

import pytest
from harness.ledger import histories_in
from harness.memory_ledger import MemoryLedger

from services.ledger.states import faults


@pytest.fixture
def ledger():
    """A ledger in memory; whatever services do to it, every history must be sound afterwards."""
    with contextlib.closing(MemoryLedger()) as one:
        yield one
        histories, _ = histories_in(one.execute)
        assert [fault for history in histories.values() for fault in faults(history)] == []
