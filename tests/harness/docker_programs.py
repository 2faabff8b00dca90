"""Docker's programs for the compose check: private copies out of Debian's packages, nothing is installed."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from services.errors import Misconfigured
from services.local.folders import cache_dir
from services.local.packages import PackageSet, copy_dir, libraries, obtain, system_archive
from services.settings import LocalSettings

RELEASE = "bookworm"
"""The release that this check can run on: its `debootstrap` makes the next one."""
NEXT_RELEASE = "trixie"
"""The release that the stand-ins for upstream's images are made of; the first whose `docker-compose` is version 2."""
CURES = "start a Docker engine that can pull images, or run this as root on Debian 12 with its package archive in reach"

ENGINE = PackageSet(
    title="Docker",
    package="docker.io",
    cures=CURES,
    own_copies=("docker.io", "containerd", "runc", "tini", "iptables", "libxtables", "libip4tc", "libip6tc"),
    is_wanted=lambda name: (
        name.startswith(("docker.io", "containerd", "runc", "tini", "iptables", "lib"))
        and not name.endswith("-perl")
        and not name.startswith("libperl")
    ),
)
COMPOSE = PackageSet(
    title="Docker Compose",
    package="docker-compose",
    cures=CURES,
    own_copies=("docker-compose",),
    suite=NEXT_RELEASE,
    is_wanted=lambda name: name == "docker-compose",
)
DEBOOTSTRAP = PackageSet(
    title="debootstrap",
    package="debootstrap",
    cures=CURES,
    own_copies=("debootstrap",),
)
COMPOSE_PLUGIN = "usr/libexec/docker/cli-plugins/docker-compose"


@dataclass(frozen=True)
class Programs:
    """Environments in which `dockerd`, `docker` and `docker-compose`, and `debootstrap` are on the PATH."""

    docker: dict[str, str]
    debootstrap: dict[str, str]
    archive: str
    """The package archive that the system uses."""


def find_programs(scratch: Path) -> Programs:
    """Unpack what is not in the cache yet; `scratch` gets a folder of links.

    Raises `Misconfigured` where they cannot be had.
    """
    if not Path("/etc/os-release").exists() or shutil.which("apt-get") is None:
        raise Misconfigured(f"this is no Debian: {CURES}")
    archive, codename = system_archive()
    if codename != RELEASE:
        raise Misconfigured(f"this is Debian {codename}, and the stand-ins are made on {RELEASE}: {CURES}")
    engine = _unpacked("docker", ENGINE, "usr/sbin/dockerd")
    compose = _unpacked("docker-compose", COMPOSE, COMPOSE_PLUGIN)
    debootstrap = _unpacked("debootstrap", DEBOOTSTRAP, "usr/sbin/debootstrap")
    links = scratch / "bin"
    links.mkdir(parents=True)
    # An unpacked package has no alternatives: its command is one of two programs, by the name that it is called by.
    for name in ("iptables", "ip6tables", "iptables-save", "iptables-restore"):
        (links / name).symlink_to(engine / "usr/sbin/xtables-nft-multi")
    (links / "docker-compose").symlink_to(compose / COMPOSE_PLUGIN)
    return Programs(
        docker={
            "PATH": f"{links}:{engine}/usr/bin:{engine}/usr/sbin:{_path()}",
            "LD_LIBRARY_PATH": libraries(engine),
            "XTABLES_LIBDIR": str(next(engine.glob("usr/lib/*/xtables"))),
        },
        debootstrap={
            "PATH": f"{debootstrap}/usr/bin:{debootstrap}/usr/sbin:{_path()}",
            "LD_LIBRARY_PATH": libraries(debootstrap),
            "DEBOOTSTRAP_DIR": str(debootstrap / "usr/share/debootstrap"),
        },
        archive=archive,
    )


def _unpacked(name: str, packages: PackageSet, program: str) -> Path:
    def whole(copy: Path) -> Path | None:
        return copy if (copy / program).exists() else None

    return obtain(packages, copy_dir(cache_dir(LocalSettings()), name), whole, print, {})


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
