"""A Docker engine for the compose check: the one that runs, or one of our own that leaves the machine as it was.

Ours lives in mount and process namespaces of its own, so that its mounts and processes end with it, however it ends.
What it changes outside of them is read before and put back after (`harness.machine`).
"""

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.docker_programs import CURES, find_programs
from harness.machine import SHADOWED, Machine

from services.errors import Misconfigured
from services.local import leftovers

READY_WITHIN_S = 60
STOPPED_WITHIN_S = 60
ANSWERS_WITHIN_S = 30
CAP_SYS_ADMIN = 21


class NoEngine(Exception):
    """No engine runs and none can be started here; the text says why."""


@dataclass(frozen=True)
class Engine:
    """How its clients find it."""

    environment: Mapping[str, str]
    """What `docker` and `docker-compose` need beside the caller's own environment."""
    is_ours: bool
    """Whether it is thrown away afterwards, so that stand-ins may take the names of upstream's images."""
    archive: str = ""
    """The package archive for stand-ins."""
    debootstrap: Mapping[str, str] | None = None

    def run(self, *command: str, timeout_s: float = 600, **options) -> subprocess.CompletedProcess[str]:
        """Run a client to its end; asserts that it succeeds, unless told `check=False`."""
        check = options.pop("check", True)
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, **options.pop("env", {})},
            stdin=subprocess.DEVNULL if "input" not in options else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **options,
        )
        assert done.returncode == 0 or not check, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-6000:]}"
        return done


def can_start_one() -> bool:
    """Whether this process may start an engine: root, with the right to mount."""
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return os.geteuid() == 0 and bool(int(effective.split()[1], 16) >> CAP_SYS_ADMIN & 1)


@contextlib.contextmanager
def running_engine(home: Path, images: Path) -> Iterator[Engine]:
    """An engine; one of ours keeps the rest in `home` and its images in `images`. Raises `NoEngine`."""
    running = Engine({}, is_ours=False)
    if _answers(running, "docker", "version") and _answers(running, "docker", "compose", "version"):
        yield running
        return
    if not can_start_one():
        raise NoEngine(f"no Docker engine runs, and only root with the right to mount can start one: {CURES}")
    try:
        programs = find_programs(home)
    except Misconfigured as error:
        raise NoEngine(str(error)) from None
    address = f"unix://{home}/docker.sock"
    config = home / "client"
    config.mkdir()
    engine = Engine(
        {**programs.docker, "DOCKER_HOST": address, "DOCKER_CONFIG": str(config), "DOCKER_BUILDKIT": "1"},
        is_ours=True,
        archive=programs.archive,
        debootstrap=programs.debootstrap,
    )

    def run(*command: str, **options: str) -> str:
        return engine.run(*command, **options).stdout

    before = Machine.of_now(run)
    before.make_folders()
    try:
        with _daemon(engine, home, images):
            _empty(engine)
            yield engine
    finally:
        before.put_back(run)


def _empty(engine: Engine) -> None:
    """Remove what a check that was killed has left among the images that are kept."""
    for kind, listed in (("container", ("ls", "--all", "--quiet")), ("volume", ("ls", "--quiet"))):
        left = engine.run("docker", kind, *listed).stdout.split()
        if left:
            engine.run("docker", kind, "rm", "--force", *left)
    engine.run("docker", "network", "prune", "--force")


@contextlib.contextmanager
def _daemon(engine: Engine, home: Path, images: Path) -> Iterator[None]:
    (home / "daemon.json").write_text(json.dumps({"hosts": [engine.environment["DOCKER_HOST"]], "log-level": "warn"}))
    shadow = " && ".join(f"mount -t tmpfs tmpfs {one}" for one in SHADOWED)
    daemon = f"dockerd --config-file {home}/daemon.json --data-root {images}"
    daemon += f" --exec-root {home}/exec --pidfile {home}/pid"
    run = uuid.uuid4().hex
    environment = {**os.environ, **engine.environment, **leftovers.marks(home, run)}
    guardian = subprocess.Popen(
        [sys.executable, "-m", "services.local.guardian", run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    with (home / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child=TERM", "--mount-proc", "sh", "-c",
             f"{shadow} && exec {daemon}"],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        give_up_at = time.monotonic() + READY_WITHIN_S
        while not _answers(engine, "docker", "version"):
            told = (home / "dockerd.log").read_text(errors="replace")[-2000:]
            if process.poll() is not None:
                raise NoEngine(f"dockerd ends with {process.returncode}: {told}")
            if time.monotonic() > give_up_at:
                raise NoEngine(f"dockerd does not answer within {READY_WITHIN_S} s: {told}")
            time.sleep(0.1)
        yield
    finally:
        leftovers.end([one for one in leftovers.of_run(run) if one.name() == "dockerd"], STOPPED_WITHIN_S)
        process.terminate()
        process.wait(timeout=STOPPED_WITHIN_S)
        guardian.stdin.close()
        guardian.wait(timeout=STOPPED_WITHIN_S)


def _answers(engine: Engine, *command: str) -> bool:
    try:
        return engine.run(*command, timeout_s=ANSWERS_WITHIN_S, check=False).returncode == 0
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
