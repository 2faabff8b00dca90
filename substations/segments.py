"""Records for checks from outside, in segments: a reader may delete what it has read while the writer goes on."""

import errno
import os
import tempfile
from pathlib import Path

from services.errors import Misconfigured

SEGMENT_BYTES = 16 * 1024 * 1024


class Segments:
    """Appends to `<folder>/<substation>-<epoch>-<pid>-<number>.jsonl`.

    A file that has become longer than `segment_bytes` is followed by the next number, and is not written any more.
    """

    def __init__(self, folder: Path, setting: str, *, is_synced: bool, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Make the folder where there is none; raises `Misconfigured`, which names the `setting`."""
        self._folder = folder
        self._is_synced = is_synced
        self._segment_bytes = segment_bytes
        self._tenure = ("", 0)
        self._number = 0
        self._file: int | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise Misconfigured(f"{setting}: {folder} cannot be used: {error.strerror}") from None

    def append(self, substation: str, epoch: int, text: bytes) -> None:
        """Append whole or not at all, on disk where it is synced; raises `OSError`."""
        if self._tenure != (substation, epoch):
            self.close()
            self._tenure, self._number = (substation, epoch), 0
        if self._file is None:
            name = f"{substation}-{epoch}-{os.getpid()}-{self._number}.jsonl"
            self._file = os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        whole_bytes = os.fstat(self._file).st_size
        if os.write(self._file, text) != len(text):
            os.ftruncate(self._file, whole_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._is_synced:
            os.fsync(self._file)
        if whole_bytes + len(text) > self._segment_bytes:
            self.close()
            self._number += 1

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
