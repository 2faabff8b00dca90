"""Asks about files that others may own: where this user may not look, a fault is told, and no trace is written."""

import errno
import os
from pathlib import Path

_CURES = {
    errno.ENOENT: "see that it is there, or name another",
    errno.EROFS: "mount it for writing, or name another",
    errno.ENOSPC: "free some room there",
    errno.EDQUOT: "free some room there, or raise this user's quota",
    errno.EFBIG: "allow this user larger files (`ulimit -f`)",
    errno.EMFILE: "allow this process more open files (`ulimit -n`)",
    errno.ENFILE: "end other programs, or allow the machine more open files (`sysctl fs.file-max`)",
}


def is_there(path: Path) -> bool:
    """Whether something is there and this user can reach it; unlike `Path.exists`, it raises nothing."""
    return os.access(path, os.F_OK)


def nearest(path: Path) -> Path:
    """The path itself, or the nearest of its parents that is there and can be reached."""
    return next((one for one in (path, *path.parents) if is_there(one)), Path("/"))


def owner_name(path: Path) -> str:
    """Whose it is: a name, or `uid 4711` for an owner without one; raises `OSError` where this user may not look."""
    try:
        return path.owner()
    except KeyError:
        return f"uid {path.stat().st_uid}"


def named_file(error: OSError) -> Path | None:
    """The file that an error names; None where it names none, or only the number of a descriptor."""
    name = error.filename
    return None if name is None or isinstance(name, int) else Path(os.fsdecode(name))


def describe(error: OSError, path: Path) -> str:
    """`<file> cannot be used (<reason>)`, with the owner where somebody's rights are the reason."""
    reason = error.strerror
    if isinstance(error, PermissionError):
        there = nearest(path)
        reason = f"{reason}; {'it' if there == path else there} belongs to {owner_name(there)}"
    return f"{path} cannot be used ({reason})"


def cure_of(error: OSError, of_rights: str) -> str:
    """What helps where a file cannot be used; `of_rights` is the cure where this user may not use it."""
    return of_rights if isinstance(error, PermissionError) else _CURES.get(error.errno or 0, "name another")
