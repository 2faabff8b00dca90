"""Where RabbitMQ's programs are: installed, or in a private copy that is unpacked once."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.files import is_there
from services.local.packages import PackageSet, Say, copy_dir, is_whole, libraries, obtain
from services.local.plain_paths import is_plain
from services.local.programs import find_program

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
    copy: Path | None = None
    """The unpacked copy that they lie in."""

    def seen_at(self, folder: Path) -> "RabbitInstallation":
        """The same programs under another name of the folder that their copy is."""

        def moved(text: object) -> str:
            return str(text).replace(str(self.copy), str(folder))

        environment = {name: moved(value) for name, value in self.environment.items()}
        return RabbitInstallation(Path(moved(self.server)), Path(moved(self.epmd)), environment, folder)

    @property
    def series(self) -> str:
        """The first two numbers of its version, like `4.1`; "unknown" where its files do not tell."""
        plugins = self.server.parent.parent / "plugins"
        found = (re.match(r"rabbit-(\d+\.\d+)\.", one.name) for one in sorted(plugins.glob("rabbit-*")))
        return next((one[1] for one in found if one), "unknown")


def find_rabbitmq(cache: Path, say: Say, environment: Mapping[str, str] | None = None) -> RabbitInstallation:
    """The installed RabbitMQ, else a private copy in `cache`, unpacked there once by children with `environment`.

    Raises `Misconfigured` with the cause and the cures where neither can be had.
    """
    found = locate_rabbitmq(cache)
    if found is not None:
        return found
    return obtain(PACKAGES, copy_dir(cache, "rabbitmq"), unpacked, say, environment or {})


def locate_rabbitmq(cache: Path) -> RabbitInstallation | None:
    """The installed RabbitMQ, else the copy that was unpacked into `cache` before, else None."""
    return _installed() or unpacked(copy_dir(cache, "rabbitmq"))


def _installed() -> RabbitInstallation | None:
    """An installed server script; not the wrapper on the PATH, which insists on another user."""
    # Neither question starts anything: one asks for the version, the other for the nodes that are there.
    erl = find_program("erl", "+V")
    epmd = find_program("epmd", "-names") or _first(Path(_ERLANG_ROOT), "erts-*/bin/epmd")
    candidates = [
        _first(Path("/usr/lib/rabbitmq/lib"), "rabbitmq_server-*/sbin/rabbitmq-server"),
        _first(Path("/opt/homebrew/opt/rabbitmq"), "sbin/rabbitmq-server"),
        _first(Path("/usr/local/opt/rabbitmq"), "sbin/rabbitmq-server"),
    ]
    server = next((one for one in candidates if one), None)
    if server is None or epmd is None or erl is None:
        return None
    return RabbitInstallation(server, epmd, {"PATH": f"{erl.parent}:{os.environ.get('PATH', '/usr/bin:/bin')}"})


def unpacked(copy: Path) -> RabbitInstallation | None:
    """The RabbitMQ in an unpacked copy of its packages, if it is whole."""
    server = _first(copy, "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server")
    epmd = _first(copy, "usr/lib/erlang/erts-*/bin/epmd")
    if server is None or epmd is None or not is_whole(copy) or not _finds_itself(copy):
        return None
    return RabbitInstallation(
        server,
        epmd,
        {
            "PATH": f"{copy}{_ERLANG_ROOT}/bin:{copy}/usr/bin:{os.environ.get('PATH', '/usr/bin:/bin')}",
            "LD_LIBRARY_PATH": libraries(copy),
            "ERL_ROOTDIR": f"{copy}{_ERLANG_ROOT}",
        },
        copy,
    )


def _let_erlang_be_told(root: Path, _final: Path) -> None:
    """Erlang's start script names its root; it becomes whatever ERL_ROOTDIR says, so that the copy may be moved."""
    erlang = root / _ERLANG_ROOT.lstrip("/")
    for script in (*erlang.glob("bin/erl"), *erlang.glob("erts-*/bin/erl")):
        script.write_bytes(script.read_bytes().replace(f"ROOTDIR={_ERLANG_ROOT}".encode(), b'ROOTDIR="$ERL_ROOTDIR"'))


def _finds_itself(copy: Path) -> bool:
    """Whether Erlang's start script is one that is told its root, or names this copy, as earlier versions wrote it."""
    script = copy / _ERLANG_ROOT.lstrip("/") / "bin/erl"
    try:
        named = re.findall(rb"^\s*ROOTDIR=(/.*)$", script.read_bytes(), re.MULTILINE)
    except OSError:
        return False
    return not named or (is_plain(copy) and set(named) == {os.fsencode(copy) + _ERLANG_ROOT.encode()})


def _first(folder: Path, pattern: str) -> Path | None:
    """What matches, of the highest version."""
    if not is_there(folder):  # `glob` would raise where this user may not look
        return None
    return max(folder.glob(pattern), key=lambda path: [int(one) for one in re.findall(r"\d+", str(path))], default=None)


PACKAGES = PackageSet(
    title="RabbitMQ",
    package="rabbitmq-server",
    cures=CURES,
    # The Erlang of an unpacked copy looks for its parts beside itself, never in the system.
    own_copies=("erlang-", "rabbitmq-server"),
    relocate=_let_erlang_be_told,
)
