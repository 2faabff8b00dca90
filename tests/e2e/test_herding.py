"""The same burst between two scrapes under two policies: the naive one herds, ours does not."""

from collections import Counter

import pytest
from harness.stack import started, until

SCRAPE_INTERVAL_S = 2


@pytest.mark.parametrize("policy", ["least-load-scraped", "least-utilisation"])
def test_a_burst_between_two_scrapes(tmp_path, port, vhost, policy):
    settings = {
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
        "EVENLOAD_BALANCER_POLICY": policy,
        "EVENLOAD_BALANCER_SCRAPE_INTERVAL_S": str(SCRAPE_INTERVAL_S),
    }
    with started(tmp_path / "data", port, **settings) as stack:
        stack.until_up()
        # Right after the scrape of the one that the naive policy will take, so that none splits the burst.
        first = stack.get("/substations")[1]["items"][0]["substation"]

        def is_just_scraped() -> bool:
            line = stack.get(f"/substations/{first}")[1]
            return 0.1 < (line["reading_age_s"] + line["age_s"]) % SCRAPE_INTERVAL_S < 0.5

        until(is_just_scraped, "a fresh reading")
        request_ids = stack.submit(40, over_s=0.4, energy_kwh=6, max_power_kw=11)

        def claimed_by() -> Counter | None:
            answers = [stack.get(f"/charge-requests/{one}")[1] for one in request_ids]
            if all(answer["status"] == "charging" for answer in answers):
                return Counter(answer["substation"] for answer in answers)
            return None

        counts = until(claimed_by, "40 claims")
        if policy == "least-utilisation":
            assert len(counts) == 4, counts
            assert all(8 <= count <= 12 for count in counts.values()), counts
        else:
            assert max(counts.values()) >= 24, counts
