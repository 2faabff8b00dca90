"""A command in a pseudo-terminal of a given size, as a person sees it."""

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

from harness.stack import ROOT

_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")


class Terminal:
    """A running command whose terminal it is; `text` is all that it wrote, without the terminal's codes."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str], columns: int = 80, lines: int = 24) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            # Its controlling terminal, so that ^C reaches it as a signal, also where the tests themselves ignore that.
            ["env", "--default-signal=INT,HUP", "setsid", "--ctty", *argv],
            cwd=ROOT,
            env={name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._master = master
        self.raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def text(self) -> str:
        return _CODES.sub("", self.raw).replace("\r", "")

    def until_said(self, pattern: str, within_s: float = 60.0) -> re.Match[str]:
        """Read until a pattern was written; fails with what was written instead."""
        deadline = time.monotonic() + within_s
        while not (match := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, f"not said within {within_s:g} s: {pattern}\n{self.text}"
            assert self._read(), f"ended without saying {pattern}\n{self.text}"
        return match

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def wait(self, within_s: float = 90.0) -> int:
        """Read to its end; returns the exit code."""
        deadline = time.monotonic() + within_s
        while self._read():
            assert time.monotonic() < deadline, f"does not end within {within_s:g} s\n{self.text}"
        os.close(self._master)
        return self.process.wait(10)

    def _read(self) -> bool:
        """Take in what was written within a second; False at the end."""
        if not select.select([self._master], [], [], 1.0)[0]:
            return True
        try:
            chunk = os.read(self._master, 65_536)
        except OSError:  # the other side is closed
            return False
        self.raw += self._decoder.decode(chunk)  # a sign may come in two pieces
        return bool(chunk)
