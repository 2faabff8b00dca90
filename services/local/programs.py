"""Finds programs by their names, and passes over those that do not run: a shim on the PATH may lead nowhere."""

import os
import subprocess
from pathlib import Path

_ANSWERS_WITHIN_S = 20
_DID_NOT_RUN = (126, 127)
"""Exit codes of a shell, and of shims, whose program is no program or not there."""


def find_program(name: str, *question: str) -> Path | None:
    """The first program of that name on the PATH that runs when it is asked `question`, whatever it answers."""
    candidates = (Path(folder) / name for folder in os.get_exec_path())
    return next((one.absolute() for one in candidates if _runs(one, *question)), None)


def _runs(program: Path, *question: str) -> bool:
    # In this order: where a folder is closed to this user, `access` says no, and `is_file` would raise.
    if not (os.access(program, os.X_OK) and program.is_file()):
        return False
    try:
        done = subprocess.run(  # noqa: S603 (what the user has on the PATH)
            [program, *question], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWERS_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode not in _DID_NOT_RUN
