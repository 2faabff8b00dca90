"""Paths for programs whose shell scripts end a path at a blank, a quote, a `$` or a colon."""

import re
from pathlib import Path

WORKING_FOLDER = Path("/proc/self/cwd")
"""The working folder of whoever looks at it, and of the programs that it starts, under a name without quotes."""
_PLAIN = re.compile(r"[A-Za-z0-9/._+@=,~-]*")


def is_plain(path: Path) -> bool:
    """Whether no shell would read anything else than a path in it."""
    return bool(_PLAIN.fullmatch(str(path)))


def seen_from_inside(folder: Path) -> Path:
    """The name by which a program that works in `folder` may know it: a plain one, whatever it is called."""
    return folder if is_plain(folder) else WORKING_FOLDER
