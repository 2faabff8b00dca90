"""Where Prometheus' program is: named, installed, or in a private copy that is unpacked once."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.errors import Misconfigured
from services.files import is_there
from services.local.packages import PackageSet, Say, copy_dir, is_whole, libraries, obtain
from services.local.programs import find_program

AUTO = "auto"
OFF = ("0", "off")
CURES = (
    "install Prometheus (Debian: apt install prometheus), or name its program in EVENLOAD_PROMETHEUS, "
    "or do without: EVENLOAD_PROMETHEUS=0"
)
_ANSWERS_WITHIN_S = 20


@dataclass(frozen=True)
class PrometheusInstallation:
    """Where Prometheus' program is, and what it needs to find its own parts."""

    program: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def find_prometheus(
    wish: str, cache: Path, say: Say, environment: Mapping[str, str] | None = None
) -> PrometheusInstallation:
    """The program that is wished for by EVENLOAD_PROMETHEUS, unless that is off.

    A private copy is unpacked into `cache` once, by children with `environment`. Raises `Misconfigured` with the cause
    and the cures where there is none to be had.
    """
    found = locate_prometheus(wish, cache)
    if found is not None:
        return found
    return obtain(_PACKAGES, copy_dir(cache, "prometheus"), _unpacked, say, environment or {})


def locate_prometheus(wish: str, cache: Path) -> PrometheusInstallation | None:
    """The program that is named, or installed, or was unpacked into `cache` before, else None.

    Raises `Misconfigured` where what is named is no Prometheus.
    """
    if wish != AUTO:
        return _named(wish)
    installed = find_program("prometheus", "--version")
    return PrometheusInstallation(installed) if installed else _unpacked(copy_dir(cache, "prometheus"))


def _named(name: str) -> PrometheusInstallation:
    program = shutil.which(name)
    if program is None:
        raise Misconfigured(f"EVENLOAD_PROMETHEUS: {name!r} is no program: {CURES}")
    try:
        done = subprocess.run(  # noqa: S603 (the user's own choice)
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWERS_WITHIN_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise Misconfigured(f"EVENLOAD_PROMETHEUS: {program} does not run ({error}): {CURES}") from None
    if not (done.stdout + done.stderr).startswith("prometheus, version"):
        raise Misconfigured(f"EVENLOAD_PROMETHEUS: {program} is not Prometheus: {CURES}")
    return PrometheusInstallation(Path(program).absolute())


def _unpacked(copy: Path) -> PrometheusInstallation | None:
    program = copy / "usr/bin/prometheus"
    if not is_there(program) or not is_whole(copy):
        return None
    pages = copy / "usr/share/prometheus/web"
    # Debian's program looks for its pages in the system; others carry theirs, and do not know the option.
    arguments = (f"--web.local-assets={pages}",) if pages.is_dir() else ()
    return PrometheusInstallation(program, arguments, {"LD_LIBRARY_PATH": libraries(copy)})


def _drop_sources(root: Path, _final: Path) -> None:
    """The pages read one file of the time zones' library, whose sources fill 200 MB."""
    for folder in (root / "usr/share/javascript/moment-timezone").glob("*/"):
        shutil.rmtree(folder)


# Beside the program what its pages are made of: links lead from one package into the others.
_PARTS = ("libjs-", "fonts-glyphicons-")
_PACKAGES = PackageSet(
    title="Prometheus",
    package="prometheus",
    cures=CURES,
    own_copies=("prometheus", *_PARTS),
    is_wanted=lambda name: name == "prometheus" or name.startswith(_PARTS),
    relocate=_drop_sources,
)
