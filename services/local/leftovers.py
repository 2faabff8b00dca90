"""Finds and ends what belongs to a stack by a mark in its environment, however its parents died."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import psutil

DIR_MARK = "_EVENLOAD_STACK_DIR"
RUN_MARK = "_EVENLOAD_STACK_RUN"


def marks(data_dir: Path, run: str) -> dict[str, str]:
    """What every process of a stack carries, and with it everything that it starts."""
    return {DIR_MARK: str(data_dir), RUN_MARK: run}


def of_run(run: str) -> list[psutil.Process]:
    """Processes of one run of a stack."""
    return _marked(lambda environment: environment.get(RUN_MARK) == run)


def of_folder(data_dir: Path) -> list[psutil.Process]:
    """Processes of any run in a data folder."""
    return _marked(lambda environment: environment.get(DIR_MARK) == str(data_dir))


def of_other_runs(data_dir: Path, run: str) -> list[psutil.Process]:
    """Processes that earlier runs in the same data folder left behind."""
    return _marked(lambda environment: environment.get(DIR_MARK) == str(data_dir) and environment.get(RUN_MARK) != run)


def end(processes: list[psutil.Process], grace_s: float) -> None:
    """SIGTERM, and SIGKILL after `grace_s` for who is still there; returns when all are gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _marked(is_ours: Callable[[dict[str, str]], bool]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and is_ours(process.environ()):
                found.append(process)
    return found
