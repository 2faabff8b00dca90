"""Transformers of three sizes under vehicles of unlike power that come and go: their utilisations stay together."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median

from harness.stack import Stack, started, until

SPEED = 300
SCRAPE_INTERVAL_S = 0.2
"""A minute of session time, as by default at speed 60."""
POWERS_KW = (3.0, 7.0)
VEHICLES_AT_ONCE = 125
"""5 kW each for 1,277 kW of limits: a mean utilisation of 0.49, and connectors left over at each substation."""
SESSION_S = 30.0
TABLES = 40
WINDOW = 5
"""Tables, a second apart: one vehicle that leaves the smallest substation is up to 3.7 points there, until the next
comes."""
MOST = 0.05


def vehicle(rng: random.Random, number: int, *, left: float = 1.0) -> dict[str, object]:
    """A request for half to one and a half of `SESSION_S`, of which a share is left."""
    power_kw = round(rng.uniform(*POWERS_KW), 2)
    energy_kwh = round(power_kw * SESSION_S * rng.uniform(0.5, 1.5) * left * SPEED / 3_600, 3)
    return {"vehicle_id": f"EV-{number}", "energy_kwh": energy_kwh, "max_power_kw": power_kw}


def steady_load(stack: Stack, stopped: threading.Event) -> None:
    """Everybody at once as if they had come one by one, then requests at the pace at which sessions end."""
    rng = random.Random(3)
    with ThreadPoolExecutor(16) as pool:
        for number in range(VEHICLES_AT_ONCE):
            pool.submit(stack.post, **vehicle(rng, number, left=rng.uniform(0.05, 1)))
        started_at = time.monotonic()
        number = 0
        while not stopped.wait(max(0.0, started_at + number * SESSION_S / VEHICLES_AT_ONCE - time.monotonic())):
            pool.submit(stack.post, **vehicle(rng, VEHICLES_AT_ONCE + number))
            number += 1


def published_tables(stack: Stack) -> list[list[float]]:
    """Demand ÷ limit of each substation in tables of fresh readings whose mean lies between 0.4 and 0.8."""
    seen: dict[str, list[float]] = {}

    def has_seen_enough() -> bool:
        table = stack.get("/substations")[1]
        utilisations = [one["utilisation"] for one in table["items"]]
        is_fresh = len(utilisations) == 4 and all(one["fresh"] for one in table["items"])
        if is_fresh and 0.4 <= mean(utilisations) <= 0.8:
            seen[table["as_of"]] = utilisations
        return len(seen) >= TABLES

    until(has_seen_enough, "enough published tables between 0.4 and 0.8", 180)
    return list(seen.values())


def spread(utilisations: list[float]) -> float:
    return max(utilisations) - min(utilisations)


def test_utilisations_stay_within_five_points(tmp_path, port, vhost):
    settings = {
        "EVENLOAD_AMQP_URL": vhost.amqp_url("operator"),
        "EVENLOAD_GRID": "mixed",
        "EVENLOAD_SPEED": str(SPEED),
        "EVENLOAD_BALANCER_SCRAPE_INTERVAL_S": str(SCRAPE_INTERVAL_S),
        "EVENLOAD_BALANCER_SEED": "1",
    }
    with started(tmp_path / "data", port, **settings) as stack:
        stack.until_up()
        stopped = threading.Event()
        load = threading.Thread(target=steady_load, args=(stack, stopped))
        load.start()
        try:
            tables = published_tables(stack)
        finally:
            stopped.set()
            load.join()

    windows = [tables[first : first + WINDOW] for first in range(len(tables) - WINDOW + 1)]
    single = sorted(spread(table) for table in tables)
    smoothed = sorted(spread([mean(one) for one in zip(*window, strict=True)]) for window in windows)
    print(
        f"spread of single tables: median {median(single):.3f}, 9 of 10 up to {single[TABLES * 9 // 10]:.3f}, "
        f"most {single[-1]:.3f}; of {WINDOW} s means: median {median(smoothed):.3f}, most {smoothed[-1]:.3f}"
    )
    assert smoothed[-1] <= MOST
    assert single[TABLES * 9 // 10] <= MOST
