"""A weekday's rush hours, five hours of the evening in a minute, by the arrivals that ElaadNL measured.

    locust -f locustfiles/rush_hour.py --headless                          # or: make rush
    locust -f locustfiles/rush_hour.py --headless --rush-from 6 --rush-to 11 WorkplaceDrivers
    locust -f locustfiles --class-picker                                   # its page, or: make locust

`--vehicles` arrive between `--rush-from` and `--rush-to`, and `--rush-speed` says how many seconds of the day pass in
one; the whole day in ten minutes is `--rush-from 0 --rush-to 24 --rush-speed 144`. A charging session passes at the
stack's own speed, and is cut to `--longest-minutes`. `--end-within` seconds after the last arrival all must have ended.

Exit code 1 where a request failed, was not seen to end, or none was recorded at all; 2 for wrong options.
"""

import _run  # noqa: F401 (registers its listeners)
from _arrivals import Arrivals, played_hours
from _drivers import ArrivalShape, PrivateDrivers, PublicDrivers, WorkplaceDrivers  # noqa: F401 (for locust to find)
from _options import add_number
from locust import events


@events.init_command_line_parser.add_listener
def add_options(parser) -> None:
    add_number(parser, "rush-from", default=16, at_least=0, at_most=23, about="first hour of the day that is played")
    add_number(parser, "rush-to", default=21, at_least=1, at_most=24, about="the hour at which it ends")
    add_number(
        parser,
        "rush-speed",
        default=300.0,
        at_least=1,
        at_most=18_000,
        about="seconds of the day that pass in one; 300: five hours in a minute",
    )


class RushHour(ArrivalShape):
    """Arrivals that change from hour to hour as they do on a weekday."""

    def arrivals(self, options, profiles) -> Arrivals:
        percent = {name: profile.arrivals_percent for name, profile in profiles.items()}
        return played_hours(percent, options.vehicles, options.rush_from, options.rush_to, options.rush_speed)
