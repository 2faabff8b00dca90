"""Where RabbitMQ's programs are: installed, or in a private copy that is unpacked once."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.local.packages import PackageSet, Say, copy_dir, libraries, obtain

CURES = (
    "install RabbitMQ (Debian: apt install rabbitmq-server), or name a running broker in EVENLOAD_AMQP_URL, "
    "or run this on a Debian-like system with access to its package archive"
)
_ERLANG_ROOT = "/usr/lib/erlang"


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
    found = locate_rabbitmq(cache)
    if found is not None:
        return found
    return obtain(_PACKAGES, copy_dir(cache, "rabbitmq"), _unpacked, say, environment or {})


def locate_rabbitmq(cache: Path) -> RabbitInstallation | None:
    """The installed RabbitMQ, else the copy that was unpacked into `cache` before, else None."""
    return _installed() or _unpacked(copy_dir(cache, "rabbitmq"))


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


def _unpacked(copy: Path) -> RabbitInstallation | None:
    server = _first(copy, "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
    epmd = _first(copy, "usr/lib/erlang/erts-*/bin/epmd")
    if server is None or epmd is None:
        return None
    return RabbitInstallation(
        server,
        epmd,
        {
            "PATH": f"{copy}{_ERLANG_ROOT}/bin:{copy}/usr/bin:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "LD_LIBRARY_PATH": libraries(copy),
        },
    )


def _relocate_erlang(root: Path, final: Path) -> None:
    """Erlang's start scripts name their root; it becomes the folder they will lie in."""
    erlang = root / _ERLANG_ROOT.lstrip("/")
    for script in (*erlang.glob("bin/*"), *erlang.glob("erts-*/bin/*")):
        if script.name in ("erl", "start", "start_erl") and script.is_file() and not script.is_symlink():
            own_root = os.fsencode(final) + _ERLANG_ROOT.encode()
            script.write_bytes(script.read_bytes().replace(_ERLANG_ROOT.encode(), own_root))


def _first(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern), reverse=True)), None)


_PACKAGES = PackageSet(
    title="RabbitMQ",
    package="rabbitmq-server",
    cures=CURES,
    # The Erlang of an unpacked copy looks for its parts beside itself, never in the system.
    own_copies=("erlang-", "rabbitmq-server"),
    relocate=_relocate_erlang,
)
