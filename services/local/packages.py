"""Unpacks a private copy of RabbitMQ from the distribution's own packages: no root rights, nothing installed."""

import contextlib
import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.errors import Misconfigured

CURES = (
    "install RabbitMQ (Debian: apt install rabbitmq-server), or name a running broker in EVENLOAD_AMQP_URL, "
    "or run this on a Debian-like system with access to its package archive"
)
_OWN_COPY_PREFIXES = ("erlang-", "rabbitmq-server")
_LONGEST_STEP_S = 600
_ERLANG_ROOT = "/usr/lib/erlang"

Say = Callable[[str], None]


@dataclass(frozen=True)
class RabbitInstallation:
    """Where RabbitMQ's programs are, and the environment they need."""

    server: Path
    epmd: Path
    environment: dict[str, str] = field(default_factory=dict)


def find_rabbitmq(cache: Path, say: Say, environment: Mapping[str, str] | None = None) -> RabbitInstallation:
    """The installed RabbitMQ, else a private copy in `cache`, unpacked there once by children with `environment`.

    Raises `Misconfigured` with the cause and the cures where neither can be had.
    """
    return locate_rabbitmq(cache) or _unpack(cache, say, environment or {})


def locate_rabbitmq(cache: Path) -> RabbitInstallation | None:
    """The installed RabbitMQ, else the copy that was unpacked into `cache` before, else None."""
    return _installed() or _unpacked(_copy_dir(cache))


def can_unpack() -> bool:
    """Whether this system has the tools to fetch and unpack packages."""
    return bool(shutil.which("apt-get") and shutil.which("dpkg"))


def _installed() -> RabbitInstallation | None:
    """An installed server script; not the wrapper on the PATH, which insists on another user."""
    epmd = shutil.which("epmd") or _first(Path(_ERLANG_ROOT), "erts-*/bin/epmd")
    candidates = [
        _first(Path("/usr/lib/rabbitmq/lib"), "rabbitmq_server-*/sbin/rabbitmq-server"),
        _first(Path("/opt/homebrew/opt/rabbitmq"), "sbin/rabbitmq-server"),
        _first(Path("/usr/local/opt/rabbitmq"), "sbin/rabbitmq-server"),
    ]
    server = next((one for one in candidates if one), None)
    if server is None or epmd is None or shutil.which("erl") is None:
        return None
    return RabbitInstallation(server, Path(epmd))


def _copy_dir(cache: Path) -> Path:
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    system = release.get("VERSION_CODENAME") or release.get("ID") or platform.system().lower()
    return cache / f"rabbitmq-{system}-{platform.machine()}"


def _unpacked(copy: Path) -> RabbitInstallation | None:
    server = _first(copy, "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
    epmd = _first(copy, "usr/lib/erlang/erts-*/bin/epmd")
    if server is None or epmd is None:
        return None
    libraries = [str(one) for one in sorted(copy.glob("usr/lib/*-linux-*")) + sorted(copy.glob("lib/*-linux-*"))]
    return RabbitInstallation(
        server,
        epmd,
        {
            "PATH": f"{copy}{_ERLANG_ROOT}/bin:{copy}/usr/bin:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "LD_LIBRARY_PATH": ":".join(libraries),
        },
    )


def _unpack(cache: Path, say: Say, environment: Mapping[str, str]) -> RabbitInstallation:
    if not can_unpack():
        raise Misconfigured(f"there is no RabbitMQ here, and no apt-get to unpack one with: {CURES}")
    copy = _copy_dir(cache)
    with _locked(cache):
        # Somebody else may have unpacked it while this process waited for the lock.
        if _unpacked(copy) is None:
            for stale in cache.glob("unpacking-*"):  # of a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="unpacking-") as scratch:
                _fetch(Path(scratch), say, environment)
                root = Path(scratch) / "root"
                for package in sorted(Path(scratch).glob("*.deb")):
                    _step(["dpkg", "-x", str(package), str(root)], "unpacking RabbitMQ", Path(scratch), environment)
                _relocate_erlang(root, copy)
                shutil.rmtree(copy, ignore_errors=True)
                root.rename(copy)
    installation = _unpacked(copy)
    if installation is None:
        raise Misconfigured(f"the packages of this system hold no RabbitMQ where it is expected: {CURES}")
    return installation


def _fetch(scratch: Path, say: Say, environment: Mapping[str, str]) -> None:
    """Download RabbitMQ, its Erlang, and whatever else of its dependencies this system lacks."""
    empty = scratch / "empty-status"
    empty.touch()
    for folder in ("lists/partial", "cache/archives/partial", "log"):
        (scratch / folder).mkdir(parents=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State::lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
    apt += ["-o", f"Dir::Log={scratch}/log", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]
    apt += ["-o", "Acquire::Languages=none", "-o", "APT::Update::Post-Invoke::=true"]
    apt += ["-o", "Acquire::Retries=3", "-o", "APT::Update::Error-Mode=any"]
    say("fetching the package lists (private copies, nothing is installed)")
    _step([*apt, "update"], "fetching package lists", scratch, environment)
    plan = [*apt, "install", "--no-install-recommends", "--print-uris", "-qq", "rabbitmq-server"]
    missing = _planned(_step(plan, "planning RabbitMQ's packages", scratch, environment))
    everything = _planned(
        _step([*plan, "-o", f"Dir::State::status={empty}"], "planning RabbitMQ's packages", scratch, environment)
    )
    # The Erlang of an unpacked copy looks for its parts beside itself, never in the system.
    wanted = missing | {name for name in everything if name.startswith(_OWN_COPY_PREFIXES)}
    say(f"fetching RabbitMQ and Erlang ({len(wanted)} packages)")
    _step([*apt, "download", *sorted(wanted)], "fetching packages", scratch, environment)


def _planned(uris: str) -> set[str]:
    """Package names out of lines like `'address' name_version_arch.deb size hash`."""
    return {line.split()[1].split("_")[0] for line in uris.splitlines() if line.startswith("'")}


def _relocate_erlang(root: Path, final: Path) -> None:
    """Erlang's start scripts name their root; it becomes the folder they will lie in."""
    erlang = root / _ERLANG_ROOT.lstrip("/")
    for script in (*erlang.glob("bin/*"), *erlang.glob("erts-*/bin/*")):
        if script.name in ("erl", "start", "start_erl") and script.is_file() and not script.is_symlink():
            own_root = os.fsencode(final) + _ERLANG_ROOT.encode()
            script.write_bytes(script.read_bytes().replace(_ERLANG_ROOT.encode(), own_root))


def _step(command: list[str], what: str, cwd: Path, environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(  # noqa: S603 (our own arguments)
            command,
            cwd=cwd,
            env={**os.environ, **environment, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST_STEP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Misconfigured(f"{what} took more than {_LONGEST_STEP_S} s: {CURES}") from None
    if done.returncode != 0:
        faults = [line for line in done.stderr.splitlines() if line.startswith(("E:", "Err", "dpkg"))]
        raise Misconfigured(f"{what} failed ({(faults or [done.stderr.strip()[-300:] or 'no message'])[0]}): {CURES}")
    return done.stdout


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = os.open(cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Misconfigured(f"EVENLOAD_CACHE_DIR: {cache} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _first(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern), reverse=True)), None)
