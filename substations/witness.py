"""The witness: every start, stop and piece of energy of a substation, on disk before anybody is told of it.

For checking the promises from outside, without trusting the ledger: its lines are dated by the ticks' own readings of
the monotonic clock, which all processes of one machine share, and survive a `kill -9` of the process.
"""

import json
from pathlib import Path

from services.logs import get_logger
from substations.segments import SEGMENT_BYTES, Segments
from substations.substation import Substation

log = get_logger(__name__)

Key = tuple[str, int, int]
"""A request at an attempt within an epoch."""


class Witness:
    """Appends to the segments of a folder, one JSON object per line.

    `{"event": "start" | "stop", "at_s", …}` and `{"event": "energy", "from_s", "to_s", "energy_j", …}`, each with
    `substation`, `request_id`, `attempt`, `epoch`. Energy is what was delivered between two ticks [J].
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Make the folder where there is none; raises `Misconfigured`."""
        setting = "EVENLOAD_SUBSTATION_WITNESS"
        self._segments = Segments(folder, setting, is_synced=True, segment_bytes=segment_bytes)
        self._seen: dict[Key, int] = {}
        self._ticked_at_s = 0.0
        self._is_broken = False

    def write(self, substation: Substation) -> None:
        """Note what the tick just made changed; returns when it is on disk.

        What a full disk has no room for is written whole at a later tick.
        """
        now: dict[Key, int] = {
            (one.claimed.request_id, one.claimed.attempt, one.claimed.epoch): one.delivered_j
            for one in substation.sessions.values()
        }
        at_s = substation.ticked_at_s
        events: list[tuple[Key, dict[str, object]]] = []
        events += [(key, {"event": "start", "at_s": at_s}) for key in now.keys() - self._seen.keys()]
        for key, delivered_j in now.items():
            energy_j = delivered_j - self._seen.get(key, delivered_j)
            if energy_j:
                piece = {"event": "energy", "from_s": self._ticked_at_s, "to_s": at_s, "energy_j": energy_j}
                events.append((key, piece))
        events += [(key, {"event": "stop", "at_s": at_s}) for key in self._seen.keys() - now.keys()]
        try:
            if events:
                self._append(substation, events)
        except OSError as error:
            if not self._is_broken:
                log.error("witness_interrupted", substation=substation.id, cause=error.strerror)
            self._is_broken = True
            return
        self._seen, self._ticked_at_s, self._is_broken = now, at_s, False

    def _append(self, substation: Substation, events: list[tuple[Key, dict[str, object]]]) -> None:
        lines = [
            json.dumps(
                {**event, "substation": substation.id, "request_id": key[0], "attempt": key[1], "epoch": key[2]},
                separators=(",", ":"),
            )
            for key, event in events
        ]
        text = "\n".join(lines) + "\n"
        self._segments.append(substation.id, substation.epoch, text.encode())

    def close(self) -> None:
        """Close the file."""
        self._segments.close()
