"""The tick log: what a substation set at every tick, one JSON line each, so that anyone can check it afterwards."""

import contextlib
import errno
import json
import os
from pathlib import Path

from services.errors import Misconfigured
from services.logs import get_logger
from substations.substation import Substation

log = get_logger(__name__)


class TickLog:
    """Appends to `<folder>/<substation>-<epoch>.jsonl`; what a full disk has no room for is left out, line by line."""

    def __init__(self, folder: Path, substation: Substation) -> None:
        """Open the file, and make the folder where there is none; raises `Misconfigured`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"{substation.id}-{substation.epoch}.jsonl").open("ab", buffering=0)
        except OSError as error:
            raise Misconfigured(f"EVENLOAD_SUBSTATION_TICK_LOG: {folder} cannot be used: {error.strerror}") from None
        self._whole_bytes = self._file.tell()
        self._is_failing = False

    def write(self, substation: Substation) -> None:
        """Append the state that holds until the next tick, as a whole line or not at all; never raises."""
        line = tick_line(substation).encode()
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self._whole_bytes)
            if not self._is_failing:
                log.warning("tick_log_interrupted", file=self._file.name, cause=error.strerror)
            self._is_failing = True
            return
        self._whole_bytes += len(line)
        if self._is_failing:
            log.info("tick_log_resumed", file=self._file.name)
        self._is_failing = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def tick_line(substation: Substation) -> str:
    """One line; sessions are `[request_id, attempt, power_w, wanted_w, owed_j, paused]`, ended ones want nothing.

    `at_s` is the tick's reading of the monotonic clock, from which on the powers hold.
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
        "sessions": sessions,
    }
    return json.dumps(tick, separators=(",", ":")) + "\n"
