"""A spike: half of all vehicles arrive within a twentieth of the time, in the middle of it.

    locust -f locustfiles/spike.py --headless --vehicles 600 --spike-seconds 60
    locust -f locustfiles --class-picker                                   # its page, or: make locust

`--vehicles` arrive within `--spike-seconds`. A charging session is cut to `--longest-minutes` of session time.
`--end-within` seconds after the last arrival all must have ended.

Exit code 1 where a request failed, was not seen to end, or none was recorded at all; 2 for wrong options.
"""

import _run  # noqa: F401 (registers its listeners)
from _arrivals import Arrivals, shared_stage
from _drivers import ArrivalShape, PrivateDrivers, PublicDrivers, WorkplaceDrivers  # noqa: F401 (for locust to find)
from _options import add_number
from locust import events

SPIKE_OF_VEHICLES = 0.5
SPIKE_OF_TIME = 0.05


@events.init_command_line_parser.add_listener
def add_options(parser) -> None:
    add_number(parser, "spike-seconds", default=120.0, at_least=1, at_most=86_400, about="in which they arrive")


class Spike(ArrivalShape):
    """A low rate, for a moment nineteen times as much, and the low one again."""

    def arrivals(self, options, profiles) -> Arrivals:
        kinds = list(profiles)
        around = shared_stage(
            kinds, options.vehicles * (1 - SPIKE_OF_VEHICLES) / 2, options.spike_seconds * (1 - SPIKE_OF_TIME) / 2
        )
        spike = shared_stage(kinds, options.vehicles * SPIKE_OF_VEHICLES, options.spike_seconds * SPIKE_OF_TIME)
        return Arrivals([around, spike, around])
