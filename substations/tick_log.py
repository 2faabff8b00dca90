"""The tick log: what a substation set at every tick, one JSON line each, so that anyone can check it afterwards."""

import json
import tempfile
from pathlib import Path
from typing import TextIO

from services.errors import Misconfigured
from substations.substation import Substation


class TickLog:
    """Appends to `<folder>/<substation>-<epoch>.jsonl`."""

    def __init__(self, folder: Path) -> None:
        """Make the folder where there is none; raises `Misconfigured`."""
        self._folder = folder
        self._file: TextIO | None = None
        self._epoch = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise Misconfigured(f"EVENLOAD_SUBSTATION_TICK_LOG: {folder} cannot be used: {error.strerror}") from None

    def write(self, substation: Substation) -> None:
        """Append the state that holds until the next tick."""
        if self._file is None or self._epoch != substation.epoch:
            self.close()
            self._epoch = substation.epoch
            self._file = (self._folder / f"{substation.id}-{substation.epoch}.jsonl").open("a", encoding="utf-8")
        self._file.write(tick_line(substation))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


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
