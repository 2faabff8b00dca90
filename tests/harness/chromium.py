"""A real Chromium for the tests of pages: the installed one, else a private copy with its libraries and a font."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import playwright
import pytest
from harness.shared_libraries import missing_libraries
from playwright.sync_api import BrowserContext, Playwright, sync_playwright

from services.local.folders import cache_dir
from services.local.packages import PackageSet, copy_dir, libraries, obtain
from services.settings import LocalSettings

INSTALLED = ("chromium", "chromium-browser", "google-chrome-stable")
PROGRAM = "usr/lib/chromium/chromium"
FONTS = "usr/share/fonts"
FONTS_CONF = "evenload-fonts.conf"
FLAGS = ("--disable-gpu", "--disable-quic")
"""Beside Playwright's own, among them `--no-sandbox`, which root needs, and silence towards foreign hosts."""
CURES = (
    "install Chromium (Debian: apt install chromium), "
    "or run this on a Debian-like system with access to its package archive"
)
DRIVER = Path(playwright.__file__).parent / "driver/node"
"""The program that drives the browser. Playwright's package carries it, but not every library that it needs."""


@dataclass(frozen=True)
class Browser:
    """The program, and the environment that it needs beside the tests' own."""

    program: Path
    environment: dict[str, str] = field(default_factory=dict)


def find_chromium() -> Browser:
    """The installed Chromium, else a private copy in the cache.

    Raises `Misconfigured` with the cure where neither can be had.
    """
    installed = next(filter(None, map(shutil.which, INSTALLED)), None)
    if installed is not None:
        return Browser(Path(installed))
    return obtain(PACKAGES, copy_dir(cache_dir(LocalSettings()), "chromium"), _in_copy, print, {})


def _in_copy(copy: Path) -> Browser | None:
    if not ((copy / PROGRAM).exists() and (copy / FONTS_CONF).exists()):
        return None
    # Some packages keep libraries in a folder of their own, whose place they know by its absolute path only.
    own = {str(library.parent) for library in copy.glob("usr/lib/*-linux-*/*/*.so*")}
    folders = [libraries(copy), *sorted(own)]
    return Browser(copy / PROGRAM, {"LD_LIBRARY_PATH": ":".join(folders), "FONTCONFIG_FILE": str(copy / FONTS_CONF)})


def _write_fonts_conf(root: Path, final: Path) -> None:
    """The copy's own font, and the system's where there are some."""
    (root / FONTS_CONF).write_text(
        '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n<fontconfig>\n'
        f"  <dir>{final / FONTS}</dir>\n  <dir>/{FONTS}</dir>\n"
        f"  <cachedir>{final / 'font-cache'}</cachedir>\n</fontconfig>\n"
    )


PACKAGES = PackageSet(
    title="Chromium",
    package="chromium",
    cures=CURES,
    own_copies=("chromium", "fonts-dejavu-core"),
    relocate=_write_fonts_conf,
)


DRIVER_LIBRARY = PackageSet(
    title="libatomic",
    package="libatomic1",
    cures="install libatomic (Debian: apt install libatomic1), "
    "or run this on a Debian-like system with access to its package archive",
    own_copies=("libatomic1",),
)


def driver_environment() -> dict[str, str]:
    """What Playwright's driver needs beside this process's environment; nothing where the library is installed.

    Raises `Misconfigured` with the cure where the library cannot be had.
    """
    if not missing_libraries([DRIVER], os.environ):
        return {}
    copy = obtain(DRIVER_LIBRARY, copy_dir(cache_dir(LocalSettings()), "libatomic"), _with_libatomic, print, {})
    others = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": ":".join(filter(None, (libraries(copy), others)))}


def _with_libatomic(copy: Path) -> Path | None:
    return copy if any(copy.glob("usr/lib/*-linux-*/libatomic.so.1")) else None


@contextlib.contextmanager
def _running_playwright() -> Iterator[Playwright]:
    # The driver takes over this process's environment, and there is no other way to give it one.
    with pytest.MonkeyPatch.context() as environment:
        for name, value in driver_environment().items():
            environment.setenv(name, value)
        running = sync_playwright().start()
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def running_chromium(browser: Browser, **context: object) -> Iterator[BrowserContext]:
    """Start the browser with an empty profile, and end it with everything it started.

    `context` are Playwright's options, such as `viewport`.
    """
    with tempfile.TemporaryDirectory(prefix="evenload-chromium-", ignore_cleanup_errors=True) as home, \
            _running_playwright() as running:  # fmt: skip
        started = running.chromium.launch_persistent_context(
            home,
            executable_path=browser.program,
            headless=True,
            args=list(FLAGS),
            env={**_own_environment(), **browser.environment, "HOME": home},
            **context,
        )
        try:
            yield started
        finally:
            started.close()


def _own_environment() -> dict[str, str]:
    """No proxy: pages of this machine only."""
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
