"""The course of a run, from the first look at the gateway to the verdict: listeners of locust's events.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

import io
import logging
import sys
from pathlib import Path

import gevent
from _distribution import Distribution, with_section
from _drivers import ArrivalShape, profiles_of
from _follower import Follower, Gateway
from _page import extend_page
from _workers import ToldToMaster, follow_for_workers
from locust import events
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, Runner, WorkerRunner
from locust.stats import CSV_STATS_INTERVAL_SEC, console_logger
from locust.web import WebUI

LAST_ANSWERS_WITHIN_S = 10.0

log = logging.getLogger(__name__)

for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):
        _stream.reconfigure(errors="backslashreplace")  # an old locale must not end a run at a "÷"


@events.init.add_listener
def prepare(environment: Environment, runner: Runner, web_ui: WebUI | None, **_others) -> None:
    """Refuse what cannot work before anything is sent."""
    if isinstance(environment.shape_class, ArrivalShape):
        try:
            environment.shape_class.arrivals(environment.parsed_options, profiles_of(environment.user_classes))
        except ValueError as fault:
            log.error(fault)
            sys.exit(2)
    # A user that is killed in the middle of a request leaves one behind that nobody follows.
    environment.stop_timeout = max(environment.stop_timeout, LAST_ANSWERS_WITHIN_S)
    environment.follower = ToldToMaster(runner) if isinstance(runner, WorkerRunner) else None
    if isinstance(runner, MasterRunner):
        follow_for_workers(runner)
    if web_ui is not None:
        extend_page(web_ui, environment, lambda: _distribution(environment), _unreachable)

    @events.reset_stats.add_listener
    def reset(**_others) -> None:
        _distribution(environment).reset()

    @events.quit.add_listener
    def show(**_others) -> None:
        if not _is_worker(environment):
            console_logger.info(_distribution(environment).as_text())


@events.test_start.add_listener
def look_and_follow(environment: Environment, **_others) -> None:
    """See who is there, and begin to follow; raises `StopTest` where nobody answers."""
    if _is_worker(environment):
        if isinstance(environment.shape_class, ArrivalShape):
            environment.shape_class.reset_time()  # locust does that in the master alone
        return
    host = environment.host or environment.user_classes[0].host
    gateway = Gateway(host)
    try:
        substations = gateway.substations()
    except OSError as error:
        raise StopTest(_no_gateway(host, error)) from None
    if environment.follower is not None:
        environment.follower.close()
        environment.stats.clear_all()
    environment.follower = Follower(
        environment.stats, gateway, Distribution(substations), environment.parsed_options.end_within
    )


@events.test_stop.add_listener
def await_the_ends(environment: Environment, **_others) -> None:
    """Without a page the run lasts until all have ended; with one, they are followed in the background."""
    if environment.follower is None or _is_worker(environment):
        return
    environment.follower.expect_no_more()
    if environment.web_ui is None:
        environment.follower.greenlet.join()
        if environment.parsed_options.csv_prefix:
            # Locust writes its CSV files at this interval, and not once more at the end.
            gevent.sleep(2 * CSV_STATS_INTERVAL_SEC)


@events.quitting.add_listener
def judge(environment: Environment, **_others) -> None:
    """By itself locust is content with a run in which nothing happened."""
    if _is_worker(environment):
        return
    if environment.follower is not None:
        environment.follower.close()
        if environment.follower.unended:
            log.error("%d accepted requests did not end in time", environment.follower.unended)
            environment.process_exit_code = 1
    if environment.web_ui is None and environment.stats.total.num_requests == 0:
        log.error("nothing was recorded")
        environment.process_exit_code = 1
    report = environment.parsed_options.html_file
    if report and Path(report).exists():
        _add_section(Path(report), _distribution(environment))


def _add_section(report: Path, distribution: Distribution) -> None:
    report.write_text(with_section(report.read_text(encoding="utf-8"), distribution), encoding="utf-8")


def _distribution(environment: Environment) -> Distribution:
    return environment.follower.distribution if isinstance(environment.follower, Follower) else Distribution()


def _is_worker(environment: Environment) -> bool:
    return isinstance(environment.runner, WorkerRunner)


def _unreachable(host: str) -> str | None:
    try:
        Gateway(host).substations()
    except (OSError, ValueError) as error:
        return _no_gateway(host, error)
    return None


def _no_gateway(host: str, error: Exception) -> str:
    return f"no gateway answers at {host} ({error}): start one with `make run`, or name another with --host"
