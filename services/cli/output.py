"""What commands write: tables for people, JSON for programs, and one line where something went wrong."""

import errno
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console
from rich.text import Text

from services import streams
from services.errors import EvenloadError, Misconfigured
from services.files import cure_of, describe, named_file
from services.signals import EXIT_INTERRUPTED

EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_DESCRIPTOR_LEFT = (errno.EMFILE, errno.ENFILE)
PLAIN_WIDTH = 110
WIDE = 100
"""Columns from which there is room for what one can do without."""


class Terminal(Console):
    """A console that tells its caller, not the whole process, when nobody reads it any more."""

    def on_broken_pipe(self) -> None:
        """Raise on; rich itself would exit, and take a whole stack with it."""
        raise  # noqa: PLE0704 (rich calls this while it handles the BrokenPipeError)


def make_console(*, stderr: bool = False) -> Console:
    """A console for people; where its output goes to a file, lines are long enough for the tables."""
    console = Terminal(highlight=False, stderr=stderr)
    return console if console.is_terminal else Terminal(highlight=False, stderr=stderr, width=PLAIN_WIDTH)


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output, at once.

    It is all ASCII, so that it is the same on every stream, and steers no terminal.
    """
    print(json.dumps(value).replace("\x7f", "\\u007f"), flush=True)  # noqa: T201


def plain(value: object) -> str:
    """Text from elsewhere with what is no visible sign escaped, so that it cannot steer a terminal, or mislead."""
    return "".join(sign if sign.isprintable() else _escaped(ord(sign)) for sign in str(value))


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def text(value: object, style: str = "") -> Text:
    """Text from elsewhere as a cell: neither its control characters nor its brackets have a meaning."""
    return Text(plain(value), style)


def leave_with(work: Callable[[], int]) -> NoReturn:
    """Do a command's work and leave the process with its exit code; an error becomes one line on standard error."""
    try:
        code = work()
        sys.stdout.flush()  # a reader that left, `| head`, is noticed here, where typer ends it quietly
    except Misconfigured as error:
        code = _say_failed(error, EXIT_MISCONFIGURED)
    except EvenloadError as error:
        code = _say_failed(error, EXIT_FAILED)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except OSError as error:
        path, cure = named_file(error), cure_of(error, of_rights="let this user use it, or name another")
        if path is not None:
            code = _say_failed(f"{describe(error, path)}: {cure}", EXIT_MISCONFIGURED)
        elif error.errno in NO_DESCRIPTOR_LEFT:
            code = _say_failed(f"no further file can be opened ({error.strerror}): {cure}", EXIT_MISCONFIGURED)
        elif error.errno in DISK_FULL:
            streams.flush()
            code = _say_failed(f"standard output cannot be written ({error.strerror}): {cure}", EXIT_FAILED)
        else:
            raise
    sys.exit(code)


def _say_failed(error: Exception | str, code: int) -> int:
    print(f"evenload: {_lines(str(error))}", file=sys.stderr, flush=True)  # noqa: T201
    return code


def _lines(message: str) -> str:
    """Escaped, but for line ends: a stack that ended shows the last lines of a log."""
    return "\n".join(plain(line) for line in message.splitlines())
