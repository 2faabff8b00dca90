"""Arrivals at one rate from beginning to end: for comparing two policies, or for finding what a stack carries.

    locust -f locustfiles/steady.py --headless --vehicles 3000 --steady-seconds 60
    locust -f locustfiles --class-picker                                   # its page, or: make locust

`--vehicles` arrive within `--steady-seconds`. A charging session is cut to `--longest-minutes` of session time.
`--end-within` seconds after the last arrival all must have ended.

Exit code 1 where a request failed, was not seen to end, or none was recorded at all; 2 for wrong options.
"""

import _run  # noqa: F401 (registers its listeners)
from _arrivals import Arrivals, shared_stage
from _drivers import ArrivalShape, PrivateDrivers, PublicDrivers, WorkplaceDrivers  # noqa: F401 (for locust to find)
from _options import add_number
from locust import events


@events.init_command_line_parser.add_listener
def add_options(parser) -> None:
    add_number(parser, "steady-seconds", default=120.0, at_least=1, at_most=86_400, about="in which they arrive")


class Steady(ArrivalShape):
    """The same rate all the time, equally many of each kind of driver."""

    def arrivals(self, options, profiles) -> Arrivals:
        return Arrivals([shared_stage(list(profiles), options.vehicles, options.steady_seconds)])
