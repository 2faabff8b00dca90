"""Asks about files that others may own: where this user may not look, a fault is told, and no trace is written."""

import os
from pathlib import Path


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


def describe(error: OSError) -> str:
    """`<file> cannot be used (<reason>)`, with the owner where somebody's rights are the reason."""
    path, reason = Path(os.fsdecode(error.filename)), error.strerror
    if isinstance(error, PermissionError):
        there = nearest(path)
        reason = f"{reason}; {'it' if there == path else there} belongs to {owner_name(there)}"
    return f"{path} cannot be used ({reason})"
