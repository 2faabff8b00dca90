"""Runs in several processes: workers send the load, and tell the master of each request that was accepted.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

import ctypes
import os
import signal

from locust.runners import DistributedRunner, MasterRunner

ACCEPTED = "evenload_accepted"
PR_SET_PDEATHSIG = 1
_master = os.getpid()


class ToldToMaster:
    """A worker's place of the follower: the master follows the requests of all workers, or none would see them all."""

    def __init__(self, runner: DistributedRunner) -> None:
        self._runner = runner

    def take(self, request_id: str) -> None:
        self._runner.send_message(ACCEPTED, request_id)


def follow_for_workers(runner: MasterRunner) -> None:
    """Take what workers tell to the follower of this process."""

    def take(environment, msg, **_others) -> None:
        environment.follower.take(msg.data)

    runner.register_message(ACCEPTED, take)


def _end_with_master() -> None:
    """A worker that `--processes` made must not outlive its master, however that ends; nor ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # by which locust ends its workers; a shell may ignore it
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != _master:
        os._exit(1)


os.register_at_fork(after_in_child=_end_with_master)
