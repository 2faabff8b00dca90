"""A rush hour at public chargers, five hours of a weekday's evening played in one minute.

    locust -f locustfiles/rush_hour.py --headless

Exit code 1 where a request was not accepted, or none was sent at all.
"""

import random
import uuid
from itertools import pairwise

from locust import FastHttpUser, LoadTestShape, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

ARRIVALS_PERCENT = (5.7, 8.3, 10.9, 8.1, 5.1)
"""Of a weekday's arrivals at public chargers, in the hours from 16:00 (ElaadNL)."""
VEHICLES_PER_USER_S = 0.5
"""With one user for each percent of arrivals: in 60 s 230 vehicles in all, 5.5 per second at the peak."""

ENERGY_KWH = ((0.0, 1.0), (0.25, 4.2), (0.5, 7.2), (0.75, 13.8), (0.95, 41.6), (1.0, 60.0))
"""Quantiles of a session's energy at public chargers (ElaadNL); the two ends are ours."""
POWER_KW = (3.7, 7.4, 11, 22)
"""What AC chargers and cars agree on: one phase of 16 or 32 A, or three of them."""


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """How long the rush takes stands on locust's command line and page."""
    parser.add_argument(
        "--rush-seconds",
        type=float,
        default=60.0,
        env_var="LOCUST_RUSH_SECONDS",
        help="wall seconds into which the five hours are pressed",
    )


class RushHour(LoadTestShape):
    """The evening's arrivals as a number of users: each brings vehicles at the same pace."""

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many of them may come or go per second; None at the end."""
        hour_s = self.runner.environment.parsed_options.rush_seconds / len(ARRIVALS_PERCENT)
        hour = int(self.get_run_time() // hour_s)
        if hour >= len(ARRIVALS_PERCENT):
            return None
        return round(ARRIVALS_PERCENT[hour]), 10


class Drivers(FastHttpUser):
    """Each task is another vehicle that asks to be charged."""

    host = "http://127.0.0.1:8080"
    wait_time = constant_throughput(VEHICLES_PER_USER_S)

    @task
    def ask(self) -> None:
        """POST one charge request; anything but 202 is a failure, told in the gateway's own words."""
        asked = {
            "vehicle_id": f"EV-{uuid.uuid4().hex[:8]}",
            "energy_kwh": draw_energy_kwh(random.random()),
            "max_power_kw": random.choice(POWER_KW),
        }
        with self.client.post("/charge-requests", json=asked, catch_response=True) as response:
            if response.status_code != 202:
                response.failure(f"{response.status_code}: {problem_detail(response) or response.error}")


def draw_energy_kwh(share: float) -> float:
    """The energy that this share (0 to 1) of sessions stays below, between quantiles on a straight line."""
    for (low, low_kwh), (high, high_kwh) in pairwise(ENERGY_KWH):
        if share <= high:
            return round(low_kwh + (high_kwh - low_kwh) * (share - low) / (high - low), 1)
    raise ValueError(f"{share} is no share")


def problem_detail(response) -> str | None:
    """The `detail` of an RFC 9457 answer; None where there is none."""
    try:
        return response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return None


@events.quitting.add_listener
def fail_if_nothing_was_sent(environment: Environment, **_others) -> None:
    """By itself locust is content with a run in which nothing happened."""
    unattended = environment.parsed_options is not None and environment.parsed_options.headless
    # A worker's own statistics empty themselves with each report to the master.
    if unattended and not isinstance(environment.runner, WorkerRunner) and environment.stats.total.num_requests == 0:
        environment.process_exit_code = 1
