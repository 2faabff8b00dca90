"""The tick log: what a substation set at every tick, one JSON line each, so that anyone can check it afterwards."""

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

from services.errors import Misconfigured
from services.logs import get_logger
from substations.substation import Substation

log = get_logger(__name__)


class TickLog:
    """Appends to `<folder>/<substation>-<epoch>.jsonl`; what a full disk has no room for is left out, line by line."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where there is none; raises `Misconfigured`."""
        self._folder = folder
        self._file: BinaryIO | None = None
        self._epoch = 0
        self._whole_bytes = 0
        self._is_failing = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise Misconfigured(f"EVENLOAD_SUBSTATION_TICK_LOG: {folder} cannot be used: {error.strerror}") from None

    def write(self, substation: Substation) -> None:
        """Append the state that holds until the next tick, as a whole line or not at all; never raises."""
        line = tick_line(substation).encode()
        try:
            self._append(substation, line)
        except OSError as error:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.truncate(self._whole_bytes)
            if not self._is_failing:
                log.warning("tick_log_interrupted", substation=substation.id, cause=error.strerror)
            self._is_failing = True
            return
        if self._is_failing:
            log.info("tick_log_resumed", substation=substation.id)
        self._is_failing = False

    def _append(self, substation: Substation, line: bytes) -> None:
        if self._file is None or self._epoch != substation.epoch:
            self.close()
            self._epoch = substation.epoch
            self._file = (self._folder / f"{substation.id}-{substation.epoch}.jsonl").open("ab", buffering=0)
            self._whole_bytes = self._file.tell()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._whole_bytes += len(line)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def tick_line(substation: Substation) -> str:
    """One line; sessions are `[request_id, attempt, power_w, wanted_w, owed_j, paused]`, ended ones want nothing.

    `at_s` is the tick's reading of the monotonic clock, from which on the powers hold; behind the fence all stand
    still.
    """
    sessions = [
        [
            one.claimed.request_id,
            one.claimed.attempt,
            one.power_w,
            one.wanted_w if one.end is None else 0,
            one.owed_j,
            one.is_paused,
        ]
        for one in substation.sessions.values()
    ]
    tick = {
        "at_s": substation.ticked_at_s,
        "limit_w": substation.limit_w,
        "connectors": substation.connectors,
        "floor_w": substation.floor_w,
        "fenced": substation.is_fenced(substation.ticked_at_s),
        "sessions": sessions,
    }
    return json.dumps(tick, separators=(",", ":")) + "\n"
