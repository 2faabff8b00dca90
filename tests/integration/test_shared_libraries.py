"""Every program that is unpacked, or that a Python package carries, finds its shared libraries on this machine."""

import importlib
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import harness.chromium
import psutil
import pytest
from harness.chromium import DRIVER, driver_environment, find_chromium, running_chromium
from harness.postgres import find_postgres
from harness.prometheus import installation
from harness.shared_libraries import (
    missing_libraries,
    needed_libraries,
    not_found,
    programs_below,
    programs_of_python_packages,
)
from harness.stack import ROOT
from harness.suites import SUITE

from services.local.folders import cache_dir
from services.local.packages import PackageSet, copy_dir, libraries
from services.local.rabbitmq_programs import find_rabbitmq
from services.settings import LocalSettings

CACHE = cache_dir(LocalSettings())
NEVER_LOADED = {
    "llvmjit.so": "PostgreSQL compiles queries where LLVM is installed; we leave LLVM out, and it goes on without",
}
OF_A_BARE_SYSTEM = {
    *("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "libresolv.so.2", "librt.so.1"),
    *("libgcc_s.so.1", "libstdc++.so.6", "libz.so.1"),
}
"""The C library's parts, and what Debian's own package manager is made of."""


@dataclass(frozen=True)
class Copy:
    """An unpacked set of packages, and what its programs are given beside the tests' own environment."""

    folder: Path
    environment: Mapping[str, str]


def copy_of(program: Path, environment: Mapping[str, str]) -> Copy | None:
    """The copy that a program lies in. The system itself answers for a program that is installed."""
    return Copy(CACHE / program.relative_to(CACHE).parts[0], environment) if program.is_relative_to(CACHE) else None


def rabbitmq() -> Copy | None:
    found = find_rabbitmq(CACHE, print)
    return copy_of(found.server, found.environment)


def prometheus() -> Copy | None:
    found = installation()
    return copy_of(found.program, found.environment)


def postgres() -> Copy | None:
    found = find_postgres(unpacked=True)
    # Another suite's programs have a loader of their own, of which this system's `ldd` knows nothing.
    return None if SUITE else copy_of(found.folder, found.environment)


def chromium() -> Copy | None:
    found = find_chromium()
    return copy_of(found.program, found.environment)


def unpacked_before(name: str) -> Callable[[], Copy | None]:
    """A set that other tests unpack: it is looked at where they have done so on this machine."""

    def find() -> Copy | None:
        folder = copy_dir(CACHE, name)
        return Copy(folder, {"LD_LIBRARY_PATH": libraries(folder)}) if folder.exists() else None

    return find


COPIES: dict[str, Callable[[], Copy | None]] = {
    "RabbitMQ": rabbitmq,
    "Prometheus": prometheus,
    "PostgreSQL": postgres,
    "Chromium": chromium,
    "libatomic": unpacked_before("libatomic"),
    "Docker": unpacked_before("docker"),
    "Docker Compose": unpacked_before("docker-compose"),
    "debootstrap": unpacked_before("debootstrap"),
    "PgBouncer": unpacked_before("pgbouncer"),
    "OpenSSL": unpacked_before("openssl"),
}


def package_sets() -> list[PackageSet]:
    """Every set of packages that a module of ours describes."""
    sources = [*(ROOT / "services").rglob("*.py"), *(ROOT / "tests/harness").rglob("*.py")]
    found = []
    for source in sources:
        if "PackageSet(" in source.read_text():
            folder = ROOT / "tests" if source.is_relative_to(ROOT / "tests") else ROOT
            module = importlib.import_module(".".join(source.relative_to(folder).with_suffix("").parts))
            found += [one for one in vars(module).values() if isinstance(one, PackageSet)]
    return found


def test_no_set_of_packages_is_forgotten_here():
    assert sorted(one.title for one in package_sets()) == sorted(COPIES)


@pytest.mark.parametrize("title", COPIES)
def test_no_unpacked_program_lacks_a_library(title):
    """One that is installed, or that no test has unpacked here, has nothing to look at."""
    copy = COPIES[title]()
    if copy is None:
        print(f"{title}: no unpacked copy here")
        return
    programs = [one for one in programs_below(copy.folder) if one.name not in NEVER_LOADED]
    assert missing_libraries(programs, {**os.environ, **copy.environment}) == {}


@pytest.fixture(scope="module")
def carried():
    """What the programs of Python's packages need in the tests' own environment."""
    return needed_libraries(programs_of_python_packages(), os.environ)


def test_a_python_package_needs_of_the_system_only_what_a_bare_one_has(carried):
    packages = Path(sysconfig.get_path("platlib")).resolve()

    def is_needed_of_the_system(name: str, file: Path | None) -> bool:
        return name not in OF_A_BARE_SYSTEM and (file is None or not file.resolve().is_relative_to(packages))

    beyond = {
        program: needed
        for program, libraries in carried.items()
        if (needed := {name for name, file in libraries.items() if is_needed_of_the_system(name, file)})
    }
    # `driver_environment` has it unpacked. Whatever else appears here needs the same care.
    assert beyond == {DRIVER: {"libatomic.so.1"}}


def test_no_program_of_a_python_package_lacks_a_library(carried):
    assert {program: names for program, names in not_found(carried).items() if program != DRIVER} == {}
    assert missing_libraries([DRIVER], {**os.environ, **driver_environment()}) == {}


def test_the_driver_alone_is_given_its_environment(monkeypatch):
    given = {**driver_environment(), "OF_THE_DRIVER": "yes"}
    monkeypatch.setattr(harness.chromium, "driver_environment", lambda: given)
    before = dict(os.environ)
    with running_chromium(find_chromium()):
        assert os.environ == before
        [driver] = [one for one in psutil.Process().children() if one.exe() == str(DRIVER)]
        assert given.items() <= driver.environ().items()


@pytest.fixture
def program(tmp_path):
    """A copy of Python's program that asks for `libq.so.6` where the original asks for the C library."""
    original = Path(sys.executable).resolve().read_bytes()
    program = tmp_path / "program"
    program.write_bytes(original.replace(b"\0libc.so.6\0", b"\0libq.so.6\0"))
    return program


def test_a_library_that_is_not_there_is_named_with_its_program(program):
    sound = Path(sys.executable).resolve()
    assert missing_libraries([sound, program], os.environ) == {program: ["libq.so.6"]}
    assert missing_libraries([program], os.environ) == {program: ["libq.so.6"]}


def test_a_library_that_the_environment_leads_to_is_not_missing(carried, program, tmp_path):
    shutil.copy(next(one for one in carried if one.suffix == ".so"), tmp_path / "libq.so.6")
    assert missing_libraries([program], {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}) == {}


def test_a_library_that_is_too_old_is_named_with_the_version_that_is_asked_for(tmp_path):
    original = Path(sys.executable).resolve().read_bytes()
    program = tmp_path / "program"
    program.write_bytes(re.sub(rb"\0GLIBC_2\.", b"\0GLIBC_9.", original))
    [missing] = missing_libraries([program], os.environ).values()
    assert any(re.fullmatch(r"libc\.so\.6 \(GLIBC_9\.[\d.]+\)", one) for one in missing), missing


def test_what_cannot_be_looked_at_is_no_sound_program(tmp_path):
    with pytest.raises(AssertionError, match="No such file"):
        missing_libraries([tmp_path / "none"], os.environ)
