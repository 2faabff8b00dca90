"""A live stack with substations of three sizes spreads a burst, and then unlike vehicles, in proportion to the limits.

The exact figures, and those with sessions that end, are tested on virtual time in tests/unit/test_evenness.py.
"""

import random
import time
from collections import Counter

from harness.stack import Stack, started, until

LIMITS_KW = {"old-town": 190.0, "market": 304.0, "hillside": 304.0, "harbour": 478.8}
BURST, BURST_KW = 40, 11.0
OFF_BY = 2
"""Requests that a substation may have more or fewer than its share of the burst."""
VEHICLES, VEHICLES_KW = 80, (3.0, 7.0)
PACE_S = 0.05
HOURS = 5
"""At the usual speed five minutes, so that no session ends during the test."""


def charging_at(stack: Stack) -> Counter:
    """How many requests charge at each substation."""
    items = stack.get("/charge-requests?status=charging&limit=500")[1]["items"]
    return Counter(one["substation"] for one in items)


def all_take_vehicles(stack: Stack) -> bool:
    """A substation whose first scrape comes before its first tick is shown as inoperative until the next scrape."""
    items = stack.get("/substations")[1]["items"]
    return len(items) == len(LIMITS_KW) and all(one["fresh"] and one["status"] == "Operative" for one in items)


def test_a_burst_and_then_unlike_vehicles_are_spread_by_the_limits(tmp_path, port, vhost):
    settings = {
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
        "EVENLOAD_GRID": "mixed",
        "EVENLOAD_BALANCER_SCRAPE_INTERVAL_S": "2",
    }
    with started(tmp_path / "data", port, **settings) as stack:
        stack.until_up()
        until(lambda: all_take_vehicles(stack), "a table in which everybody takes vehicles")

        stack.submit(BURST, over_s=1.5, energy_kwh=BURST_KW * HOURS, max_power_kw=BURST_KW)

        until(lambda: charging_at(stack).total() == BURST, "all of the burst charging")
        counts = charging_at(stack)
        for substation, limit_kw in LIMITS_KW.items():
            share = BURST * limit_kw / sum(LIMITS_KW.values())
            assert abs(counts[substation] - share) <= OFF_BY, counts

        rng = random.Random(3)
        powers_kw = [round(rng.uniform(*VEHICLES_KW), 2) for _ in range(VEHICLES)]
        for power_kw in powers_kw:
            stack.submit(1, energy_kwh=round(power_kw * HOURS, 2), max_power_kw=power_kw)
            time.sleep(PACE_S)

        def final_table() -> list[dict]:
            items = stack.get("/substations")[1]["items"]
            is_whole = sum(one["sessions"] for one in items) == BURST + VEHICLES
            return items if is_whole and all(one["in_flight"] == 0 for one in items) else []

        table = until(final_table, "a table that shows everybody charging")
        asked_kw = BURST * BURST_KW + sum(powers_kw)
        assert abs(sum(one["demand_kw"] for one in table) - asked_kw) < 0.1, table
        # No session has ended, and each vehicle went where the utilisation with it was lowest. So a substation is ahead
        # of another by at most what one vehicle is at that other one. Messages and scrapes that come late on a busy
        # machine do not change this.
        most = BURST_KW / min(LIMITS_KW.values()) + 0.001
        utilisations = [one["utilisation"] for one in table]
        assert max(utilisations) - min(utilisations) <= most, table
