"""Logs in segments, `<writer>-<pid>-<number>.jsonl`: written piece by piece, and read while they grow."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

SEGMENT_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024


class SegmentWriter:
    """Appends objects to the current segment; each `write` is on disk when it returns."""

    def __init__(self, folder: Path, writer: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{writer}-{os.getpid()}"
        self._segment_bytes = segment_bytes
        self._number = 0

    def write(self, objects: list[dict[str, Any]]) -> None:
        if not objects:
            return
        with self._path.with_name(f"{self._path.name}-{self._number}.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(one) + "\n" for one in objects))
            file.flush()
            os.fsync(file.fileno())
            self._number += file.tell() > self._segment_bytes


class Line(NamedTuple):
    """One object of a chain of segments; None tells that the writer is gone and everything of it has been read."""

    chain: str
    what: dict[str, Any] | None


class Segments:
    """The segments of a folder. What was read once is not read again; unless it is kept, it is deleted.

    The last segment of a writer that lives is never deleted: the writer would go on writing into a file without a name.
    """

    def __init__(self, folder: Path, *, keep: bool, lives: Callable[[int], bool] = psutil.pid_exists) -> None:
        self._folder = folder
        self._keep = keep
        self._lives = lives
        self._read: dict[str, tuple[int, int]] = {}
        """Of each chain the segment that is being read, and how many of its bytes have been."""
        self._ended: set[str] = set()

    def new_lines(self) -> Iterator[Line]:
        """All lines that were written since the last call, of each chain in their order."""
        found: dict[str, list[int]] = {}
        for path in self._folder.glob("*.jsonl"):
            chain, _, number = path.stem.rpartition("-")
            found.setdefault(chain, []).append(int(number))
        for chain in sorted(found.keys() - self._ended):
            is_gone = not self._lives(int(chain.rpartition("-")[2]))  # asked before its last segment is read
            yield from self._chain(chain, sorted(found[chain]))
            if is_gone:
                yield self._end(chain)

    def end(self) -> Iterator[Line]:
        """The last lines, whoever lives; nothing is written any more."""
        yield from self.new_lines()
        for chain in sorted(self._read):
            yield self._end(chain)

    def _chain(self, chain: str, numbers: list[int]) -> Iterator[Line]:
        current, offset = self._read.get(chain, (numbers[0], 0))
        for number in (one for one in numbers if one >= current):
            path = self._path(chain, number)
            for line, after in lines(path, offset if number == current else 0):
                self._read[chain] = number, after
                yield Line(chain, line)
            if number != numbers[-1]:
                self._read[chain] = number + 1, 0
                self._delete(path)

    def _end(self, chain: str) -> Line:
        if self._keep:
            self._ended.add(chain)
        number, _ = self._read.pop(chain, (0, 0))
        self._delete(self._path(chain, number))
        return Line(chain, None)

    def _path(self, chain: str, number: int) -> Path:
        return self._folder / f"{chain}-{number}.jsonl"

    def _delete(self, path: Path) -> None:
        if not self._keep:
            path.unlink(missing_ok=True)


def lines(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """The objects of a log from a place on, each with the place after it.

    A writer that was killed may have left half a line at the end, and only there. Raises `JSONDecodeError`.
    """
    with path.open("rb") as file:
        file.seek(offset)
        rest = b""
        while chunk := file.read(CHUNK_BYTES):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                offset += len(line) + 1
                yield json.loads(line), offset
