"""The tick log: what a substation set at every tick, one JSON line each, so that anyone can check it afterwards."""

import json
from pathlib import Path

from services.logs import get_logger
from substations.segments import SEGMENT_BYTES, Segments
from substations.substation import Substation

log = get_logger(__name__)


class TickLog:
    """Appends to the segments of a folder; what a full disk has no room for is left out, line by line."""

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Make the folder where there is none; raises `Misconfigured`."""
        setting = "EVENLOAD_SUBSTATION_TICK_LOG"
        self._segments = Segments(folder, setting, is_synced=False, segment_bytes=segment_bytes)
        self._is_failing = False

    def write(self, substation: Substation) -> None:
        """Append the state that holds until the next tick, as a whole line or not at all; never raises."""
        try:
            self._segments.append(substation.id, substation.epoch, tick_line(substation).encode())
        except OSError as error:
            if not self._is_failing:
                log.warning("tick_log_interrupted", substation=substation.id, cause=error.strerror)
            self._is_failing = True
            return
        if self._is_failing:
            log.info("tick_log_resumed", substation=substation.id)
        self._is_failing = False

    def close(self) -> None:
        """Close the file."""
        self._segments.close()


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
