"""A model that a broken protocol passes proves nothing: each of these must be caught.

Two more are too rare for random runs and have tests of their own: silence timed from before the read
(`test_sweeper.py`), and progress that does not compare the attempt (`test_ledger_leases.py`).
"""

import pytest
from harness.protocol.variants import BROKEN
from harness.protocol.world import Violation, run

SEEDS = 300


@pytest.mark.parametrize(("variant", "weather"), BROKEN.items(), ids=lambda one: getattr(one, "name", ""))
def test_a_protocol_that_is_broken_in_one_place_is_caught(variant, weather):
    for seed in range(SEEDS):
        try:
            run(seed, variant, weather)
        except Violation:
            return
    pytest.fail(f"{variant.name}: {SEEDS} runs found nothing")
