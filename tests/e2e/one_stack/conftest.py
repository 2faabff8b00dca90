"""One `make run` for all files of this folder, which run in the order of their numbers.

Exact counts come first, what kills processes comes last. Each file also runs alone.
"""

import pytest
from harness.stack import started

from services.local.ports import free_ports

SPEED = 600


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """A stack as a newcomer starts it, but ten times as fast; what it said stays for the tests.

    Its folder has a strange name, its locale is not UTF-8, and the environment has variables that are for others.
    """
    settings = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONHOME": "/nowhere",
        "RABBITMQ_NODE_PORT": "1",
        "RABBITMQ_USE_LONGNAME": "true",
        "ERL_FLAGS": "-no_such_option +no_such_option",
        "EVENLOAD_PORT": "tcp://10.0.0.1:80",
        "EVENLOAD_FIRST_RUSH": "1",
        "EVENLOAD_PROMETHEUS": "auto",
        "EVENLOAD_SPEED": str(SPEED),
        "EVENLOAD_BALANCER_SCRAPE_INTERVAL_S": "0.5",
    }
    with started(tmp_path_factory.mktemp("one") / 'José\'s "data" $HOME; x', free_ports(1)[0], **settings) as one:
        one.until_up().until_said("120 of 120 have ended", 200)
        yield one
