"""`evenload break`: kill or freeze a process of the local stack, to see what the others make of it."""

import signal
import time
from pathlib import Path
from types import FrameType

import psutil
from rich.console import Console

from services.cli.output import make_console, print_json
from services.errors import EvenloadError
from services.local import running
from services.local.folders import data_folder
from services.settings import LocalSettings, load

BACK_WITHIN_S = 30.0
POLL_S = 0.1
WATCH_FOR = {
    "gateway": "clients are refused until it is back; whatever had its 202 goes on meanwhile",
    "balancer": "the load table grows old and new requests stay accepted, until it is back",
    "substation": "its reading grows old and others get the new requests; its sessions go on when it is back",
    "prometheus": "the graphs have a gap until it is back, and nothing else misses it",
    "rabbitmq": "requests are still accepted, for they stand in the ledger; they go on when it is back",
}


class NothingToBreak(EvenloadError):
    """There is no stack here, or nothing of that name in it; the text tells what there is."""


def kill(name: str, *, as_json: bool) -> int:
    """SIGKILL an instance and wait until its supervisor has started it again; returns 1 where it does not come back.

    Raises `NothingToBreak`.
    """
    data = data_folder(load(LocalSettings))
    instance, victim = _victim(data, name)
    console = make_console(stderr=as_json)
    _signal(victim, signal.SIGKILL)
    killed_at = time.monotonic()
    _tell(console, f"killed {instance} (pid {victim.pid}): {_watch_for(instance)}")
    new = _successor(data, instance, victim, killed_at + BACK_WITHIN_S)
    took_s = round(time.monotonic() - killed_at, 1)
    if as_json:
        back_after_s = took_s if new else None
        new_pid = new.pid if new else None
        found = {"target": instance, "action": "kill", "pid": victim.pid}
        print_json({**found, "new_pid": new_pid, "back_after_s": back_after_s})
    if new is None:
        raise NothingToBreak(f"{instance} is not back after {took_s:g} s: ask `evenload doctor` why")
    _tell(console, f"{instance} is back as pid {new.pid}, {took_s:g} s later; see `evenload top`, `evenload status ID`")
    return 0


def freeze(name: str, seconds: float, *, as_json: bool) -> int:
    """SIGSTOP an instance for `seconds`, and SIGCONT it however this ends; raises `NothingToBreak`."""
    instance, victim = _victim(data_folder(load(LocalSettings)), name)
    console = make_console(stderr=as_json)
    # SIGINT, too: a shell's background job is started with it ignored.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    began = time.monotonic()
    try:
        _signal(victim, signal.SIGSTOP)
        _tell(console, f"froze {instance} (pid {victim.pid}) for {seconds:g} s: {_watch_for(instance)}")
        _wait(console, instance, victim, seconds)
    finally:
        frozen_s = round(time.monotonic() - began, 1)
        if victim.is_running():  # the same process, not another one under its pid
            _signal(victim, signal.SIGCONT)
            _tell(console, f"{instance} runs again after {frozen_s:g} s; see `evenload top`, `evenload status ID`")
    if as_json:
        print_json({"target": instance, "action": "freeze", "pid": victim.pid, "frozen_s": frozen_s})
    return 0


def known_targets(incomplete: str) -> list[str]:
    """Instances and substation ids of the local stack, for a shell; empty where none runs."""
    try:
        stack = running.find(data_folder(load(LocalSettings)))
    except (EvenloadError, OSError):
        return []
    names = list(stack.processes) if stack else []
    names += [one.removeprefix("substation-") for one in names if one.startswith("substation-")]
    return [one for one in names if one.startswith(incomplete)]


def _victim(data: Path, name: str) -> tuple[str, psutil.Process]:
    stack = running.find(data)
    if stack is None:
        raise NothingToBreak(f"no stack runs from {data}: start one with `make run`, or set EVENLOAD_DATA_DIR")
    victim = stack.named(name)
    if victim is None:
        raise NothingToBreak(f"the stack has no {name!r} now: it has {', '.join(stack.processes)}")
    return next(instance for instance, process in stack.processes.items() if process == victim), victim


def _successor(data: Path, instance: str, victim: psutil.Process, give_up_at: float) -> psutil.Process | None:
    while time.monotonic() < give_up_at:
        stack = running.find(data)
        if stack is None:
            return None
        process = stack.processes.get(instance)
        if process is not None and process != victim:
            return process
        time.sleep(POLL_S)
    return None


def _wait(console: Console, instance: str, victim: psutil.Process, seconds: float) -> None:
    until = time.monotonic() + seconds
    with console.status("") as status:
        while (left_s := until - time.monotonic()) > 0:
            if not victim.is_running():
                raise NothingToBreak(
                    f"{instance} (pid {victim.pid}) ended while it was frozen: who holds the ledger's lock then "
                    "is killed, so that the others can write"
                )
            status.update(f"{instance} is frozen, {left_s:.0f} s to go; Ctrl-C lets it run on at once")
            time.sleep(min(POLL_S, left_s))


def _signal(process: psutil.Process, signum: signal.Signals) -> None:
    try:
        process.send_signal(signum)
    except psutil.AccessDenied:
        raise NothingToBreak(f"pid {process.pid} belongs to {process.username()}: only they can break it") from None
    except psutil.NoSuchProcess:
        raise NothingToBreak(f"pid {process.pid} has just ended by itself: try again") from None


def _watch_for(instance: str) -> str:
    return WATCH_FOR[instance.split("-", maxsplit=1)[0]]


def _tell(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
