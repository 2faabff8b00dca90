"""What runs of a local stack, found without asking it: by the lock on its folder and the marks of its processes."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.local import leftovers, locks

PACKAGES = ("gateway", "balancer", "substations")
PROGRAMS = {"beam.smp": "rabbitmq", "prometheus": "prometheus"}
"""Others' programs, and what their processes are called here."""


@dataclass(frozen=True)
class RunningStack:
    """A stack whose supervisor lives, and its processes by name, like `gateway`, `substation-north` and `rabbitmq`."""

    supervisor_pid: int
    processes: Mapping[str, psutil.Process]

    @property
    def services(self) -> list[str]:
        """The names of our own services' processes."""
        return [name for name in self.processes if name not in PROGRAMS.values()]

    def named(self, name: str) -> psutil.Process | None:
        """The process of an instance, or of a substation by its id; None where there is none now."""
        return self.processes.get(name) or self.processes.get(f"substation-{name}")

    def environment(self, name: str) -> dict[str, str]:
        """An instance's environment; empty where it is gone, or not ours to read."""
        with contextlib.suppress(psutil.Error, OSError, KeyError):
            return self.processes[name].environ()
        return {}


def find(data: Path) -> RunningStack | None:
    """The stack that runs from a data folder, which is absolute and without links; None where none does."""
    supervisors = locks.holders(data / "lock")
    if not supervisors:
        return None
    processes = {}
    for process in leftovers.of_folder(data):
        with contextlib.suppress(psutil.Error, OSError):
            name = _instance(process)
            if name:
                processes[name] = process
    return RunningStack(min(supervisors), dict(sorted(processes.items())))


def _instance(process: psutil.Process) -> str | None:
    if process.name() in PROGRAMS:
        return PROGRAMS[process.name()]
    # A variable of the user's own shell may be in the environment of others, too.
    if process.cmdline()[-1:] and process.cmdline()[-1] in PACKAGES:
        return process.environ().get("EVENLOAD_INSTANCE")
    return None
