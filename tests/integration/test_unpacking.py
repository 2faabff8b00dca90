"""Sets of packages that are unpacked at the same time, or that somebody was killed over. Its apt-get does nothing."""

import shutil

import pytest

from services.local.packages import PackageSet, obtain

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


def test_what_a_killed_process_left_is_removed(cache):
    (cache / "copy.unpacking-killed/root").mkdir(parents=True)
    obtain(a_set(lambda _root: None), cache / "copy", there, print, {})
    assert {one.name for one in cache.iterdir()} == {"copy", "copy.lock"}
