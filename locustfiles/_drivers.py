"""The drivers that every locustfile of this folder sends, and the shape that says when they arrive.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.

A charging session is cut to `--longest-minutes` of session time: a day's arrivals are played within a minute or so,
and unless cars left as much sooner, they would wait for hours at the default area's 160 connectors and 1,216 kW. At a
stack's own speed of 60 the 1,200 vehicles of a rush hour have all ended about two minutes after the last of them came.
"""

import random
import time
import uuid
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Mapping

from _arrivals import VEHICLES_PER_USER_S, Arrivals
from _options import add_number
from _profiles import POWER_KW, PRIVATE, PUBLIC, WORKPLACE, Profile, wish
from locust import FastHttpUser, LoadTestShape, events, task
from locust.argument_parser import LocustArgumentParser
from locust.runners import MasterRunner

USERS_PER_S = 100
"""How fast users come and go when a shape changes their number."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    add_number(parser, "vehicles", default=1200, at_least=1, at_most=1_000_000, about="how many arrive in all")
    add_number(
        parser,
        "longest-minutes",
        default=15.0,
        at_least=0.1,
        at_most=1440,
        about="of session time that a vehicle charges at its own power",
    )
    add_number(
        parser,
        "end-within",
        default=300.0,
        at_least=0,
        at_most=86_400,
        about="seconds after the last arrival in which every accepted request must end",
    )


class ArrivalShape(LoadTestShape):
    """Users as the arrivals need them; on locust's page then none, until every request that was accepted has ended."""

    abstract = True

    @abstractmethod
    def arrivals(self, options: Namespace, profiles: Mapping[str, Profile]) -> Arrivals:
        """When the drivers of these profiles arrive; raises `ValueError` for options that do not go together."""

    def reset_time(self) -> None:
        """Called by locust at the start of a run, when the options are known."""
        super().reset_time()
        environment = self.runner.environment
        self.plan = self.arrivals(environment.parsed_options, profiles_of(environment.user_classes))

    def tick(self) -> tuple[int, float] | None:
        users = self.plan.users_of_each_kind(self.get_run_time()) * len(self.runner.user_classes)
        if users:
            return users, USERS_PER_S
        environment = self.runner.environment
        if environment.web_ui is None and not isinstance(self.runner, MasterRunner):
            return None
        # The page reads no more numbers once a run has stopped, and a master hears no more of its workers.
        if self.runner.user_count == 0:
            if environment.web_ui is None:
                return None
            environment.follower.expect_no_more()
            if environment.follower.is_over:
                return None
        return 0, USERS_PER_S


class Drivers(FastHttpUser):
    """Each task is another vehicle that asks to be charged."""

    abstract = True
    host = "http://127.0.0.1:8080"
    network_timeout = 30.0
    profile: Profile

    def on_start(self) -> None:
        self._next_s = self._run_time()
        self.wait()

    def wait_time(self) -> float:
        """Until this user's next vehicle arrives; an answer that took long makes up for it."""
        amount = random.expovariate(1.0)
        shape = self.environment.shape_class
        if isinstance(shape, ArrivalShape):
            self._next_s = shape.plan.next_of_one_user(self.profile.name, self._next_s, amount)
        else:  # "Default" on the page: a number of users that somebody typed
            self._next_s += amount / VEHICLES_PER_USER_S
        return min(max(0.0, self._next_s - self._run_time()), 3600.0)

    def _run_time(self) -> float:
        shape = self.environment.shape_class
        return shape.get_run_time() if isinstance(shape, ArrivalShape) else time.perf_counter()

    @task
    def ask(self) -> None:
        """POST one charge request; anything but 202 is a failure, told in the gateway's own words."""
        longest_min = self.environment.parsed_options.longest_minutes
        asked = {
            "vehicle_id": f"EV-{uuid.uuid4().hex[:8]}",
            **wish(self.profile, random.random(), random.choice(POWER_KW), longest_min),
        }
        with self.client.post("/charge-requests", json=asked, catch_response=True) as response:
            if response.status_code == 202:
                self.environment.follower.take(response.json()["request_id"])
            else:
                response.failure(f"{response.status_code}: {_problem_detail(response) or response.error}")


class PrivateDrivers(Drivers):
    """At home, mostly from 17 to 19 o'clock."""

    profile = PRIVATE


class PublicDrivers(Drivers):
    """At public chargers: a small peak in the morning, the large one at 18 o'clock."""

    profile = PUBLIC


class WorkplaceDrivers(Drivers):
    """At work: more than half of them arrive from 7 to 10 o'clock."""

    profile = WORKPLACE


def profiles_of(user_classes: list[type[Drivers]]) -> dict[str, Profile]:
    """The chosen drivers' profiles by their names."""
    return {chosen.profile.name: chosen.profile for chosen in user_classes}


def _problem_detail(response) -> str | None:
    """The `detail` of an RFC 9457 answer; None where there is none."""
    try:
        return response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return None
