"""A locust that is imported once: each run is a child forked from there, with its own state and its own end.

As a program it reads a run's arguments from each line, as JSON, and answers with exit code and output.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Play = Callable[..., tuple[int, str]]


@contextmanager
def preloaded_locust() -> Iterator[Play]:
    """A way to run locust, from the root folder; returns exit code and what was said on both streams."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    with subprocess.Popen(
        [sys.executable, "-P", __file__], env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def play(*arguments: str) -> tuple[int, str]:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            code, said = json.loads(process.stdout.readline())
            return code, said

        try:
            yield play
        finally:
            process.kill()


def _play_each() -> None:
    from locust.main import main  # replaces much of the standard library by gevent's own, so not in the tests

    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output:
            child = os.fork()
            if child == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                os.chdir("/")
                sys.argv = ["locust", *json.loads(line)]
                sys.exit(main())
            _, status = os.waitpid(child, 0)
            output.seek(0)
            print(json.dumps([os.waitstatus_to_exitcode(status), output.read()]), flush=True)


if __name__ == "__main__":
    _play_each()
