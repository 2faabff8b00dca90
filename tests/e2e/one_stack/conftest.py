"""One `make run` for all files of this folder, which run in the order of their numbers.

Exact counts come first, what kills processes comes last. Each file also runs alone.
"""

import pytest
from harness.stack import started

from services.local.ports import free_ports

SPEED = 600


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """A stack as a newcomer starts it, but ten times as fast; what it said stays for the tests."""
    settings = {
        "EVENLOAD_FIRST_RUSH": "1",
        "EVENLOAD_PROMETHEUS": "auto",
        "EVENLOAD_SPEED": str(SPEED),
        "EVENLOAD_BALANCER_SCRAPE_INTERVAL_S": "0.5",
    }
    with started(tmp_path_factory.mktemp("one") / "data", free_ports(1)[0], **settings) as one:
        one.until_up().until_said("120 of 120 have ended", 200)
        yield one
