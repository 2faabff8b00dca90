"""Programs of another Debian suite than this system's: RabbitMQ, PostgreSQL and Python as people will run them.

`TEST_SERVERS_SUITE=trixie` makes every test use that suite's servers. Nothing is installed. An unpacked copy brings its
own C library along, and patchelf makes its programs use that, so that they run beside an older one.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from harness.shared_libraries import programs_below

from services.errors import Misconfigured
from services.local import rabbitmq_programs
from services.local.folders import cache_dir
from services.local.packages import PackageSet, copy_dir, obtain
from services.local.rabbitmq_programs import RabbitInstallation
from services.settings import LocalSettings

SUITE = os.environ.get("TEST_SERVERS_SUITE", "")
"""The suite that servers come from; this system's own when empty."""
CURES = "run this on Debian 12 or later with its package archive in reach"
NEVER_NEEDED = ("libllvm", "libclang", "libperl")
LOADERS = "usr/lib/*-linux-*/ld-linux-*.so.*"
PATCHES_WITHIN_S = 60


def of_suite(packages: PackageSet, suite: str, *beginnings: str) -> PackageSet:
    """The same program out of another suite: its packages begin with these, and every library comes along."""

    def relocate(root: Path, final: Path) -> None:
        packages.relocate(root, final)
        use_own_libraries(root, final)

    return replace(
        packages,
        title=f"{packages.title} of {suite}",
        cures=CURES,
        own_copies=("",),
        suite=suite,
        is_wanted=lambda name: name.startswith((*beginnings, "lib", "zlib1g")) and not name.startswith(NEVER_NEEDED),
        relocate=relocate,
    )


def copy_of(name: str, suite: str) -> Path:
    """Where in the cache the copy of a suite's program lies."""
    return copy_dir(cache_dir(LocalSettings()), f"{name}-of-{suite}")


def find_rabbitmq() -> RabbitInstallation:
    """The RabbitMQ that tests use; raises `Misconfigured` where it cannot be had."""
    if not SUITE:
        return rabbitmq_programs.find_rabbitmq(cache_dir(LocalSettings()), print)
    packages = of_suite(rabbitmq_programs.PACKAGES, SUITE, "erlang-", "rabbitmq-server")
    found = obtain(packages, copy_of("rabbitmq", SUITE), rabbitmq_programs.unpacked, _say, {})
    # The shell that runs its scripts is this system's, and would not start with the copy's libraries.
    environment = {name: value for name, value in found.environment.items() if name != "LD_LIBRARY_PATH"}
    return replace(found, environment=environment)


def find_python(suite: str) -> Path:
    """The newest Python of a suite; raises `Misconfigured` where it cannot be had."""
    python = PackageSet(title="Python", package="python3", cures=CURES, own_copies=())
    return obtain(of_suite(python, suite, "python3"), copy_of("python", suite), _newest_python, _say, {})


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # beside the answer of `python -m harness.suites`


def _newest_python(copy: Path) -> Path | None:
    found = sorted(copy.glob("usr/bin/python3.[0-9]*"), key=lambda one: int(one.name.split(".")[1]))
    return found[-1] if found else None


def use_own_libraries(root: Path, final: Path) -> None:
    """Make every program below `root` start with the loader and the libraries that will lie in `final`."""
    [loader] = root.glob(LOADERS)
    own_loader = final / loader.relative_to(root)
    for program in programs_with_a_loader(root):
        _patchelf("--set-interpreter", own_loader, program)
        # An rpath, unlike a runpath, holds for the libraries of libraries, too.
        _patchelf("--force-rpath", "--set-rpath", own_loader.parent, program)


def programs_with_a_loader(folder: Path) -> list[Path]:
    """Every program below a folder, but no library and nothing that is linked statically."""
    executables = [one for one in programs_below(folder) if ".so" not in one.name]
    return [one for one in executables if _patchelf("--print-interpreter", one, check=False).returncode == 0]


def _patchelf(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("patchelf")), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATCHES_WITHIN_S, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done


def main(suite: str) -> None:
    """Print where the Python of a suite is; exits with 2 where it cannot be had."""
    try:
        print(find_python(suite))
    except Misconfigured as error:
        _say(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1])
