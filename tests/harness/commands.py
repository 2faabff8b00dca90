"""The operator's commands on a running stack: for programs in this process, for people in a terminal."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

from harness.stack import ROOT, Stack
from harness.terminal import Terminal
from typer.testing import CliRunner

from services.cli.main import app

EVENLOAD = str(ROOT / ".venv/bin/evenload")


def environment(stack: Stack, **more: str) -> dict[str, str]:
    """The environment in which a command finds the stack."""
    own = {
        "EVENLOAD_DATA_DIR": str(stack.data),
        "EVENLOAD_GATEWAY_PORT": str(stack.port),
        "EVENLOAD_SPEED": stack.speed,
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")} | own | more


def seen(stack: Stack, *arguments: str, columns: int = 80, lines: int = 24) -> Terminal:
    """A command in a terminal, as a process of its own."""
    return Terminal([EVENLOAD, *arguments], environment(stack), columns, lines)


def told(stack: Stack, *arguments: str, code: int = 0, **more: str) -> Any:
    """What a command tells a program: one JSON object on one line, and its exit code."""
    strangers = dict.fromkeys(name for name in os.environ if name.startswith("EVENLOAD_"))
    with _process_kept():
        done = CliRunner(env=strangers | environment(stack, **more)).invoke(app, [*arguments, "--json"])
    assert done.exit_code == code, (done.output, done.exception)
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Give this process its signal handlers back, which a command may replace."""
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
