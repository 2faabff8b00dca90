"""A Docker engine for the compose check: the one that runs, or one of our own that leaves the machine as it was.

Ours lives in mount and process namespaces of its own, so that its mounts and processes end with it, however it ends.
What it changes outside of them, the host's network, is noted before and put back after.
"""

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.docker_programs import CURES, find_programs

from services.errors import Misconfigured
from services.local import leftovers

READY_WITHIN_S = 60
STOPPED_WITHIN_S = 60
SHADOWED = ("/etc/docker", "/opt/containerd", "/run/docker")
"""Folders that an engine writes to, whatever it is told; ours sees its own there."""
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGES = Path("/proc/sys/net/bridge")
TABLES = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}
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
    if os.environ.get("EVENLOAD_OWN_ENGINE") != "1" and _answers(running):
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
    before = Network.of_now(engine)
    made = [Path(one) for one in SHADOWED if not Path(one).exists()]
    for one in made:
        one.mkdir()
    try:
        with _daemon(engine, home, images):
            yield engine
    finally:
        for one in made:
            one.rmdir()
        before.put_back(engine)
        after = Network.of_now(engine)
        assert after == before, f"the machine is not as it was:\n{before}\n{after}"


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
        while not _answers(engine):
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


def _answers(engine: Engine) -> bool:
    try:
        return engine.run("docker", "version", timeout_s=30, check=False).returncode == 0
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Network:
    """Of the host's network what an engine changes."""

    forwarding: str
    bridges: tuple[tuple[str, str], ...]
    links: frozenset[str]
    rules: tuple[str, ...]
    saved: str = field(compare=False, repr=False)

    @classmethod
    def of_now(cls, engine: Engine) -> "Network":
        """Read it; a table that is empty reads like one that is not there."""
        saved = engine.run("iptables-save").stdout
        rules = [line.rsplit(" [", 1)[0] for line in saved.splitlines() if line[0] in "*:-"]
        empty = {f"*{one}" for one in ("filter", "nat", "mangle", "raw", "security")}
        kept = [one for one in rules if one not in empty and not (one[0] == ":" and one.endswith(" ACCEPT"))]
        return cls(
            forwarding=FORWARDING.read_text().strip(),
            bridges=tuple(sorted((one.name, one.read_text().strip()) for one in BRIDGES.glob("*"))),
            links=frozenset(one.name for one in Path("/sys/class/net").iterdir()),
            rules=tuple(kept),
            saved=saved,
        )

    def put_back(self, engine: Engine) -> None:
        """Make the host's network as it was when this was read."""
        for link in {one.name for one in Path("/sys/class/net").iterdir()} - self.links:
            _delete_bridge(link)
        for table, chains in TABLES.items():
            for change in (["-F"], ["-X"], *(["-P", chain, "ACCEPT"] for chain in chains)):
                engine.run("iptables", "-w", "-t", table, *change)
        if self.rules:
            engine.run("iptables-restore", input=self.saved)
        FORWARDING.write_text(self.forwarding)
        for name, value in self.bridges:
            (BRIDGES / name).write_text(value)


def _delete_bridge(name: str) -> None:
    """Take a bridge down and away by the kernel's own calls: a bare machine has no `ip`."""
    down, delete = 0x8914, 0x89A1  # SIOCSIFFLAGS, SIOCBRDELBR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, down, struct.pack("16sh22x", name.encode(), 0))
        fcntl.ioctl(control, delete, struct.pack("16s24x", name.encode()))
