"""Names the shared libraries that programs need, and where the loader finds them. It runs none of the programs."""

import importlib.metadata
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ENDS_WITHIN_S = 120
FOUND = re.compile(r"^\t(\S+) => (/.+) \(0x[0-9a-f]+\)$")
NOT_FOUND = re.compile(r"^\t(\S+) => not found$")
NO_SUCH_VERSION = re.compile(r": ([^:]+): version `(\S+)' not found")
HEADER_BYTES = 18
LITTLE_ENDIAN = 1
EXECUTABLE, SHARED_OBJECT = 2, 3

Libraries = dict[str, Path | None]
"""Names of libraries, each with the file that the loader finds for it, or None."""


def missing_libraries(programs: Iterable[Path], environment: Mapping[str, str]) -> dict[Path, list[str]]:
    """What the loader does not find for each program; the arguments are those of `needed_libraries`."""
    return not_found(needed_libraries(programs, environment))


def not_found(needed: Mapping[Path, Libraries]) -> dict[Path, list[str]]:
    """The libraries that have no file; a program that lacks nothing is left out."""
    missing = {program: sorted(name for name, file in needed[program].items() if file is None) for program in needed}
    return {program: names for program, names in missing.items() if names}


def needed_libraries(programs: Iterable[Path], environment: Mapping[str, str]) -> dict[Path, Libraries]:
    """The libraries that each program needs, and that these need in turn.

    `programs` are ELF executables and shared objects. `environment` is the whole environment that they are started
    with. Where a library is too old, the version that is asked for is named with it, and is not found.
    """
    needed: dict[Path, Libraries] = {one: {} for one in programs}
    if not needed:
        return {}
    done = subprocess.run(
        ["ldd", *needed],
        env={**environment, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )
    # Its exit code tells nothing: it is 1 as soon as one of the programs is linked statically.
    faults = [line for line in done.stderr.splitlines() if line.startswith("ldd: ")]
    assert not faults, faults
    headers = {f"{one}:": needed[one] for one in needed}
    libraries = next(iter(needed.values()))  # of a single program, which has no header
    for line in done.stdout.splitlines():
        libraries = headers.get(line, libraries)
        if line_found := FOUND.search(line):
            libraries[line_found[1]] = Path(line_found[2])
        elif line_found := NOT_FOUND.search(line):
            libraries[line_found[1]] = None
        elif line_found := NO_SUCH_VERSION.search(line):
            libraries[f"{Path(line_found[1]).name} ({line_found[2]})"] = None
    return needed


def programs_below(folder: Path) -> list[Path]:
    """Every ELF executable and shared object in a folder."""
    return sorted(filter(_is_program, folder.rglob("*")))


def programs_of_python_packages() -> list[Path]:
    """Every ELF executable and shared object that a package of this Python environment has brought along."""
    return sorted(filter(_is_program, _files_of_python_packages()))


def _files_of_python_packages() -> Iterator[Path]:
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            yield Path(os.path.normpath(distribution.locate_file(file)))


def _is_program(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(b"\x7fELF"):
        return False
    kind = int.from_bytes(header[16:18], "little" if header[5] == LITTLE_ENDIAN else "big")
    return kind in (EXECUTABLE, SHARED_OBJECT)
