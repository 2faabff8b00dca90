"""What a newcomer sees: `make run`, an evenly served rush, an orderly end."""

import re
import signal

from harness.stack import started

EACH = re.compile(r"│ (north|east|south|west) +│ +(\d+) +│ +(\d+) +│")


def test_a_stack_that_says_it_is_up_shows_every_substation(tmp_path, port, vhost):
    # Scraped so seldom that who is not in the table by then would be missing for long.
    settings = {"EVENLOAD_AMQP_URL": vhost.amqp_url("operator"), "EVENLOAD_BALANCER_SCRAPE_INTERVAL_S": "10"}
    with started(tmp_path / "data", port, **settings) as stack:
        stack.until_said(r"pids +\S+ \d+")

        items = stack.get("/substations")[1]["items"]

    assert {one["substation"] for one in items} == {"north", "east", "south", "west"}


def test_make_run_serves_its_first_rush_evenly_and_leaves_nothing_behind(tmp_path, port):
    with started(tmp_path / "data", port, EVENLOAD_FIRST_RUSH="1") as stack:
        stack.until_said("120 of 120 have ended", 200)
        rows = EACH.findall(stack.output)
        assert len(rows) == 4, stack.output
        for substation, requests, of_the_first in rows:
            assert 28 <= int(requests) <= 32, (substation, stack.output)
            assert int(of_the_first) >= 3, (substation, stack.output)
        assert sum(int(requests) for _, requests, _ in rows) == 120
        assert "even: 30 requests a substation" in stack.output
        # Sessions run in simulated time, so this is a property of the simulation, not of the machine.
        assert int(stack.until_said(r"have ended, (\d+) s after").group(1)) <= 75
        stack.stop(signal.SIGTERM)
        assert "everything is down" in stack.output
