"""The standard streams of a process: there whatever it was started with, and never broken by a sign."""

import contextlib
import io
import os
import sys


def prepare() -> None:
    """Open what is missing, and let the streams escape what they cannot encode; call it before anything is opened.

    A process that is started without standard streams (`>&-`) would give their numbers to the next file or socket.
    """
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", encoding="utf-8", closefd=False))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Write what is left, and drop it where the disk is full or the reader gone: else Python would exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
