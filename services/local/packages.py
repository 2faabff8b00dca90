"""Unpacks private copies of programs from the distribution's own packages: no root rights, nothing installed."""

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from services.errors import Misconfigured
from services.local.programs import find_program

_LONGEST_STEP_S = 600
_DEBIAN_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_COUNT = ".evenload-files"
"""In each copy: how many files it has."""

Say = Callable[[str], None]
Found = TypeVar("Found")


@dataclass(frozen=True)
class PackageSet:
    """What is fetched and unpacked together."""

    title: str
    package: str
    """Its main package, whose dependencies come along."""
    cures: str
    """What to do where it cannot be had, for the end of a message."""
    own_copies: tuple[str, ...]
    """Beginnings of the names that are fetched even where this system has them installed."""
    suite: str = ""
    """The suite of this system's own archive that it comes from (`trixie`); the system's own when empty."""
    is_wanted: Callable[[str], bool] = lambda _name: True
    """Whether a package that this system lacks is needed to run it."""
    relocate: Callable[[Path, Path], None] = lambda _root, _final: None
    """Mends an unpacked root for the folder that it will lie in."""


def can_unpack() -> bool:
    """Whether this system has the tools to fetch and unpack packages."""
    return None not in _tools().values()


def _tools() -> dict[str, Path | None]:
    return {name: find_program(name, "--version") for name in ("apt-get", "dpkg")}


def copy_dir(cache: Path, name: str) -> Path:
    """Where in `cache` the copy of a set for this system lies."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    system = release.get("VERSION_CODENAME") or release.get("ID") or platform.system().lower()
    return cache / f"{name}-{system}-{platform.machine()}"


def is_whole(copy: Path) -> bool:
    """Whether a copy has as many files as were unpacked: programs that tidy a cache up delete them one by one."""
    try:
        return _count_files(copy) >= int((copy / _COUNT).read_text())
    except FileNotFoundError:
        return True  # an earlier version made it
    except (OSError, ValueError):
        return False


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def libraries(copy: Path) -> str:
    """The copy's own shared libraries, as LD_LIBRARY_PATH wants them."""
    return ":".join(str(one) for one in sorted(copy.glob("usr/lib/*-linux-*")) + sorted(copy.glob("lib/*-linux-*")))


def obtain(
    packages: PackageSet, copy: Path, locate: Callable[[Path], Found | None], say: Say, environment: Mapping[str, str]
) -> Found:
    """What `locate` finds in `copy`, into which a set is fetched and unpacked before where it finds nothing.

    Children get `environment`. Raises `Misconfigured` with the cause and the cures where it cannot be had, or is not
    where it is expected.
    """
    found = locate(copy)
    if found is None:
        _unpack(packages, copy, lambda: locate(copy) is not None, say, environment)
        found = locate(copy)
    if found is None:
        raise Misconfigured(
            f"the packages of this system hold no {packages.title} where it is expected: {packages.cures}"
        )
    return found


def _unpack(
    packages: PackageSet, copy: Path, is_whole: Callable[[], bool], say: Say, environment: Mapping[str, str]
) -> None:
    tools = _tools()
    if None in tools.values():
        raise Misconfigured(
            f"there is no {packages.title} here, and no apt-get and dpkg that run to unpack one with: {packages.cures}"
        )
    with _locked(copy):
        # Somebody else may have unpacked it while this process waited for the lock.
        if is_whole():
            return
        scratches = f"{copy.name}.unpacking-"
        for stale in copy.parent.glob(f"{scratches}*"):  # of a process that was killed: nobody else has the lock
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=copy.parent, prefix=scratches) as scratch:
            work = _Work(packages, Path(scratch), environment, tools)
            _fetch(work, say)
            root = Path(scratch) / "root"
            for package in sorted(Path(scratch).glob("*.deb")):
                work.step(["dpkg", "-x", str(package), str(root)], f"unpacking {packages.title}")
            packages.relocate(root, copy)
            (root / _COUNT).write_text(f"{_count_files(root) + 1}\n")
            shutil.rmtree(copy, ignore_errors=True)
            try:
                root.rename(copy)
            except OSError as error:
                raise Misconfigured(
                    f"EVENLOAD_CACHE_DIR: {copy} cannot be replaced ({error.strerror}): "
                    "remove it, or name another folder"
                ) from None


@dataclass(frozen=True)
class _Work:
    packages: PackageSet
    scratch: Path
    environment: Mapping[str, str]
    tools: Mapping[str, Path | None]

    def step(self, command: list[str], what: str) -> str:
        """Run one command; returns what it printed."""
        cures = self.packages.cures
        try:
            done = subprocess.run(  # noqa: S603 (our own arguments)
                [str(self.tools[command[0]]), *command[1:]],
                cwd=self.scratch,
                env={**os.environ, **self.environment, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LONGEST_STEP_S,
                check=False,
            )
        except OSError as error:
            raise Misconfigured(f"{what} failed ({command[0]} does not run: {error.strerror}): {cures}") from None
        except subprocess.TimeoutExpired:
            raise Misconfigured(f"{what} took more than {_LONGEST_STEP_S} s: {cures}") from None
        if done.returncode != 0:
            faults = [line for line in done.stderr.splitlines() if line.startswith(("E:", "Err", "dpkg"))]
            fault = (faults or [done.stderr.strip()[-300:] or "no message"])[0]
            raise Misconfigured(f"{what} failed ({fault}): {cures}")
        return done.stdout


def _fetch(work: _Work, say: Say) -> None:
    """Download the set's own copies, and whatever else of its dependencies this system lacks."""
    packages, scratch = work.packages, work.scratch
    empty = scratch / "empty-status"
    empty.touch()
    for folder in ("lists/partial", "cache/archives/partial", "log"):
        (scratch / folder).mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
    apt += ["-o", f"Dir::Log={scratch}/log", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
    apt += ["-o", "Acquire::Languages=none", "-o", "APT::Update::Post-Invoke::=true"]
    apt += ["-o", "Acquire::Retries=3", "-o", "APT::Update::Error-Mode=any"]
    if packages.suite:
        archive = scratch / "archive.list"
        archive.write_text(_sources(packages.suite))
        apt += ["-o", f"Dir::Etc::sourcelist={archive}", "-o", "Dir::Etc::sourceparts=/dev/null"]
    say(f"fetching the package lists for {packages.title} (a private copy, nothing is installed)")
    work.step([*apt, "update"], "fetching package lists")
    planning = f"planning {packages.title}'s packages"
    plan = [*apt, "install", "--no-install-recommends", "--print-uris", "-qq", packages.package]
    # What this system has installed says nothing of another suite, and may stand in its way.
    missing = set() if packages.suite else package_names(work.step(plan, planning))
    everything = package_names(work.step([*plan, "-o", f"Dir::State::status={empty}"], planning))
    own_copies = {name for name in everything if name.startswith(packages.own_copies)}
    wanted = {name for name in missing | own_copies if packages.is_wanted(name)}
    say(f"fetching {packages.title} ({len(wanted)} packages)")
    work.step([*apt, "download", *sorted(wanted)], "fetching packages")


def system_archive() -> tuple[str, str]:
    """The address that this system fetches its own packages from, and its release's name (`bookworm`).

    Raises `Misconfigured` where the system does not say.
    """
    codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    wanted = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = subprocess.run(  # noqa: S603 (our own arguments)
        # Without release information: a bare system has fetched none yet.
        ["apt-get", "indextargets", "--no-release-info", "--format", wanted, "Created-By: Packages"],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=_LONGEST_STEP_S,
        check=False,
    )
    for line in targets.stdout.splitlines():
        address, release, component = line.split()
        if (release, component) == (codename, "main"):
            return address, codename
    raise Misconfigured(f"apt's sources name no archive of this system's own release {codename!r}: add it to them")


def _sources(suite: str) -> str:
    """A source line for another suite of the archive that the system itself uses."""
    keys = f"[signed-by={_DEBIAN_KEYS}] " if _DEBIAN_KEYS.exists() else ""
    return f"deb {keys}{system_archive()[0]} {suite} main\n"


def package_names(uris: str) -> set[str]:
    """The packages of a plan, out of apt's lines like `'address' name_version_arch.deb size hash`."""
    return {line.split()[1].split("_")[0] for line in uris.splitlines() if line.startswith("'")}


@contextlib.contextmanager
def _locked(copy: Path) -> Iterator[None]:
    """Each copy has a lock of its own, so that several sets are fetched at the same time."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(copy.with_name(f"{copy.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(
            f"EVENLOAD_CACHE_DIR: {copy.parent} cannot be written ({error.strerror}): name a folder of your own"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
