"""Programs of another Debian suite, which bring a C library of their own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.shared_libraries import needed_libraries
from harness.suites import programs_with_a_loader, use_own_libraries


@pytest.fixture
def unpacked(tmp_path):
    """A root with `cat`, its libraries and their loader, as packages have them."""
    program = Path(shutil.which("cat")).resolve()
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    shutil.copy(program, root / "usr/bin/cat")
    [libraries] = needed_libraries([program], os.environ).values()
    folder = root / "usr/lib" / libraries["libc.so.6"].parent.name
    folder.mkdir(parents=True)
    [loader] = libraries["libc.so.6"].parent.glob("ld-linux-*.so.*")
    for one in (loader, *libraries.values()):
        shutil.copy(one, folder)
    return root


def test_an_unpacked_program_uses_the_loader_and_the_libraries_beside_it(unpacked, tmp_path):
    final = tmp_path / "a folder, of the cache"
    use_own_libraries(unpacked, final)
    unpacked.rename(final)

    said = subprocess.run([final / "usr/bin/cat", "/proc/self/maps"], capture_output=True, text=True, check=True)

    mapped = {line.split(maxsplit=5)[5].strip() for line in said.stdout.splitlines() if ".so" in line}
    assert {Path(one).parent.parent for one in mapped} == {final / "usr/lib"}
    assert any("ld-linux" in one for one in mapped)


def test_libraries_and_programs_without_a_loader_stay_as_they_are(unpacked):
    (unpacked / "usr/bin/script").write_text("#!/bin/sh\n")

    assert programs_with_a_loader(unpacked) == [unpacked / "usr/bin/cat"]
