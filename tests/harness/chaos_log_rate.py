"""Counts how many lines a second each service logs, while it logs them."""

import json
import re
from pathlib import Path

from harness.chaos_checker import Finding

LINES_MAX = 50
"""In a second of the wall clock, of one service."""
LONGEST_BYTES = 64 * 1024 * 1024
SECOND = re.compile(rb'"timestamp": ?"([^"]{19})')


class LogRate:
    """The logs of a folder; one that is long is emptied once it has been counted, unless it is kept."""

    def __init__(self, folder: Path, names: tuple[str, ...], *, keep: bool) -> None:
        self._logs = {name: _Log(folder / f"{name}.log") for name in names}
        self._keep = keep

    def count(self) -> None:
        """Count what was logged since the last time."""
        for log in self._logs.values():
            log.count()
            if not self._keep:
                log.empty()

    @property
    def most(self) -> dict[str, tuple[int, str]]:
        """Of each service the most lines of a second, and which second that was (UTC)."""
        return {name: log.most for name, log in self._logs.items()}

    def findings(self) -> list[Finding]:
        return [
            Finding("log flood", name, f"{lines} lines at {second}, at most {LINES_MAX} a second are sound: {example}")
            for name, log in self._logs.items()
            for (lines, second), example in [(log.most, log.example)]
            if lines > LINES_MAX
        ]


class _Log:
    """One log. Lines without a time, of a trace for instance, count to the second before them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._second = ""
        self._lines = 0
        self.most = (0, "")
        self.example = ""
        """The event of the line with which the most were reached."""

    def count(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._count_line(line)

    def empty(self) -> None:
        """Empty a long log: its writer appends, and goes on at the beginning."""
        if self._offset > LONGEST_BYTES:
            with self._path.open("r+b") as file:
                file.truncate(0)
            self._offset = 0

    def _count_line(self, line: bytes) -> None:
        told = SECOND.search(line)
        second = told[1].decode() if told is not None else self._second
        self._lines = self._lines + 1 if second == self._second else 1
        self._second = second
        if self._lines > self.most[0]:
            self.most = self._lines, second
            self.example = _event(line)


def _event(line: bytes) -> str:
    try:
        return str(json.loads(line).get("event", ""))
    except ValueError:
        return line[:80].decode(errors="replace").strip()
