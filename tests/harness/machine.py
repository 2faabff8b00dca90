"""What a Docker engine changes of the machine that it runs on, read before and put back after."""

import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGE_FILTERS = Path("/proc/sys/net/bridge")
LINKS = Path("/sys/class/net")
CGROUPS = Path("/sys/fs/cgroup")
SHADOWED = ("/etc/docker", "/opt/containerd", "/run/docker")
"""Folders that an engine writes to, whatever it is told; ours sees its own there, but they have to be there."""
TABLES = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")}

Run = Callable[..., str]
"""Runs a firewall command, with `input` if given, and returns its output."""


@dataclass(frozen=True)
class Machine:
    """One reading; two are equal where an engine has left nothing behind."""

    rules: tuple[str, ...]
    saved: str = field(compare=False, repr=False)
    forwarding: str
    bridge_filters: tuple[tuple[str, str], ...]
    bridges: frozenset[str]
    cgroups: frozenset[str]
    folders: frozenset[str]

    @classmethod
    def of_now(cls, run: Run) -> "Machine":
        """Read it; a table of the firewall that is empty reads like one that is not there."""
        saved = run("iptables-save")
        rules = [line.rsplit(" [", 1)[0] for line in saved.splitlines() if line[0] in "*:-"]
        return cls(
            rules=tuple(line for line in rules if line[0] != "*" and not (line[0] == ":" and line.endswith(" ACCEPT"))),
            saved=saved,
            forwarding=FORWARDING.read_text().strip(),
            # Not there before the kernel's module is loaded, and then switched on for everybody.
            bridge_filters=tuple(
                sorted((one.name, one.read_text().strip()) for one in BRIDGE_FILTERS.glob("bridge-nf-call-*"))
            ),
            bridges=frozenset(one.name for one in LINKS.iterdir() if (one / "bridge").exists()),
            cgroups=frozenset(str(one) for one in (*CGROUPS.glob("docker"), *CGROUPS.glob("*/docker"))),
            folders=frozenset(one for one in SHADOWED if Path(one).exists()),
        )

    def make_folders(self) -> None:
        """Make those that an engine of ours needs."""
        for one in set(SHADOWED) - self.folders:
            Path(one).mkdir()

    def put_back(self, run: Run) -> None:
        """Make the machine as it was when this was read, the firewall first; asserts that it is."""
        self._put_back_firewall(run)
        for bridge in {one.name for one in LINKS.iterdir() if (one / "bridge").exists()} - self.bridges:
            with contextlib.suppress(OSError):
                _delete_bridge(bridge)
        _write(FORWARDING, self.forwarding)
        before = dict(self.bridge_filters)
        for one in BRIDGE_FILTERS.glob("bridge-nf-call-*"):
            _write(one, before.get(one.name, "0"))
        now = Machine.of_now(run)
        for top in now.cgroups - self.cgroups:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        for one in now.folders - self.folders:
            with contextlib.suppress(OSError):
                Path(one).rmdir()
        assert dict(Machine.of_now(run).differences(self)) == {}, "the machine is not as it was"

    def differences(self, before: "Machine") -> Iterator[tuple[str, object]]:
        """What is not as before; switches that the kernel did not have then count as off."""
        off = {name: "0" for name, _ in self.bridge_filters}
        for name in ("rules", "forwarding", "bridges", "cgroups", "folders"):
            if getattr(self, name) != getattr(before, name):
                yield name, getattr(self, name)
        if dict(self.bridge_filters) != off | dict(before.bridge_filters):
            yield "bridge_filters", self.bridge_filters

    def _put_back_firewall(self, run: Run) -> None:
        for table, chains in TABLES.items():
            for change in (["-F"], ["-X"], *(["-P", chain, "ACCEPT"] for chain in chains)):
                run("iptables", "-w", "-t", table, *change)
        if self.rules:
            run("iptables-restore", input=self.saved)


def _write(setting: Path, value: str) -> None:
    """Only what differs: a container may be forbidden to write even that."""
    if setting.read_text().strip() != value:
        setting.write_text(value)


def _delete_bridge(name: str) -> None:
    """Take a bridge down and away by the kernel's own calls: a bare machine has no `ip`."""
    down, delete = 0x8914, 0x89A1  # SIOCSIFFLAGS, SIOCBRDELBR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, down, struct.pack("16sh22x", name.encode(), 0))
        fcntl.ioctl(control, delete, struct.pack("16s24x", name.encode()))
