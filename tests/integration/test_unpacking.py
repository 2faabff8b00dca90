"""Sets of packages that are unpacked at the same time, or that somebody was killed over. Its apt-get does nothing."""

import shutil

import pytest

from services.errors import Misconfigured
from services.local.packages import PackageSet, can_unpack, is_whole, obtain

TITLE = "anything"


def a_set(relocate) -> PackageSet:
    def unpack(root, final):
        root.mkdir()  # as dpkg would do
        relocate(root)

    return PackageSet(title=TITLE, package=TITLE, cures="", own_copies=(), relocate=unpack)


def there(copy):
    return copy if copy.exists() else None


@pytest.fixture
def cache(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apt-get", "dpkg"):
        (programs / name).symlink_to(shutil.which("true"))
    monkeypatch.setenv("PATH", str(programs))
    return tmp_path / "cache"


@pytest.mark.timeout(60)
def test_one_set_neither_waits_for_another_nor_takes_its_work_for_a_dead_process(cache):
    def relocate(root):
        obtain(a_set(lambda _root: None), cache / "second", there, print, {})
        assert root.exists()

    assert obtain(a_set(relocate), cache / "first", there, print, {}) == cache / "first"
    assert {one.name for one in cache.iterdir()} == {"first", "first.lock", "second", "second.lock"}


def test_a_copy_from_which_files_were_deleted_is_unpacked_anew(cache):
    def relocate(root):
        for name in ("one", "two"):
            (root / name).write_text("")

    def whole(copy):
        return copy if copy.exists() and is_whole(copy) else None

    copy = obtain(a_set(relocate), cache / "copy", whole, print, {})
    (copy / "more").write_text("")
    assert obtain(a_set(lambda _root: pytest.fail("unpacked twice")), cache / "copy", whole, print, {}) == copy

    (copy / "more").unlink()
    (copy / "two").unlink()
    obtain(a_set(relocate), cache / "copy", whole, print, {})

    assert (copy / "two").exists()
    (copy / ".evenload-files").write_text("")
    assert not is_whole(copy)
    (copy / ".evenload-files").unlink()
    assert is_whole(copy)  # one of an earlier version, which counted nothing


@pytest.mark.parametrize("tool", ["apt-get", "dpkg"])
def test_a_tool_that_does_not_run_is_not_there(cache, tmp_path, tool):
    program = tmp_path / "bin" / tool
    program.unlink()
    program.write_text("#!/bin/sh\nexit 127\n")
    program.chmod(0o755)

    assert not can_unpack()
    with pytest.raises(Misconfigured, match="there is no anything here, and no apt-get and dpkg that run"):
        obtain(a_set(lambda _root: None), cache / "copy", there, print, {})


def test_a_cache_that_cannot_be_written_is_told_with_its_setting(cache):
    cache.write_text("no folder")

    with pytest.raises(
        Misconfigured, match=r"^EVENLOAD_CACHE_DIR: .*cache cannot be written \(File exists\): name a fo"
    ):
        obtain(a_set(lambda _root: None), cache / "copy", there, print, {})


def test_what_a_killed_process_left_is_removed(cache):
    (cache / "copy.unpacking-killed/root").mkdir(parents=True)
    obtain(a_set(lambda _root: None), cache / "copy", there, print, {})
    assert {one.name for one in cache.iterdir()} == {"copy", "copy.lock"}
