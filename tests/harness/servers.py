"""One RabbitMQ and one PostgreSQL for all processes of a test run: `python -m harness.servers FOLDER`.

The process that begins the run starts this one, which tells on a Unix socket where the servers are. The first request
for a server starts it, and every request is answered once that server is ready. The servers end when standard input
ends. This is a process of its own, so that a test that changes its environment changes that of no server.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

ADDRESS_OF_RUN = "TEST_SERVERS"
"""Environment variable: the socket of a run around this one, whose servers this one uses."""
SOCKET = "socket"
SERVES_WITHIN_S = 60
ENDS_WITHIN_S = 120


def _start_broker(stack: ExitStack, folder: Path) -> object:
    # Here, because this process is started also for tests that need no server.
    from harness.broker import running_broker

    return stack.enter_context(running_broker(folder / "rabbitmq"))


def _start_postgres(stack: ExitStack, _folder: Path) -> object:
    from harness.postgres import find_postgres, make_ledger_template, running_postgres

    server = stack.enter_context(running_postgres(find_postgres()))
    make_ledger_template(server)
    return server


STARTS: dict[str, Callable[[ExitStack, Path], object]] = {"broker": _start_broker, "postgres": _start_postgres}
"""How each server is started, by the name of its fixture."""


class SharedServers:
    """This object starts each server at most once, and tells each process that asks where the server is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(len(STARTS))
        self._started: dict[str, Future[object]] = {}
        self._listener = Listener(str(folder / SOCKET), "AF_UNIX")

    def serve(self) -> None:
        """Answer until `close`."""
        while True:
            try:
                connection = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """End what was started."""
        self._listener.close()
        self._pool.shutdown(wait=True)
        self._stack.close()

    def _answer(self, connection: Connection) -> None:
        with connection, contextlib.suppress(EOFError, OSError):  # of a process that was killed
            name, waits = connection.recv()
            started = self._start(name)
            if waits:
                connection.send(started.exception() or started.result())

    def _start(self, name: str) -> "Future[object]":
        with self._lock:
            if name not in self._started:
                self._started[name] = self._pool.submit(STARTS[name], self._stack, self._folder)
            return self._started[name]


@contextlib.contextmanager
def serving(*, for_children: bool = False) -> Iterator[str]:
    """Serve a run's servers; the address to ask at. Inside of another run, that run's servers are used.

    With `for_children`, test runs that are started as processes use these servers, too.
    """
    if around := os.environ.get(ADDRESS_OF_RUN):
        yield around
        return
    with tempfile.TemporaryDirectory(prefix="evenload-tests-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.servers", folder],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the tests first
        )
        address = f"{folder}/{SOCKET}"
        try:
            if for_children:
                os.environ[ADDRESS_OF_RUN] = address
            yield address
        finally:
            if for_children:
                del os.environ[ADDRESS_OF_RUN]
            process.stdin.close()
            process.wait(ENDS_WITHIN_S)


def announce(address: str, name: str) -> None:
    """Have a server started that will be asked for soon."""
    with _connected(address) as connection:
        connection.send((name, False))


def obtain(address: str, name: str) -> Any:
    """Wait for a server and return where it is; raises what kept it from starting."""
    with _connected(address) as connection:
        connection.send((name, True))
        answer = connection.recv()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _connected(address: str) -> Connection:
    give_up_at = time.monotonic() + SERVES_WITHIN_S
    while True:
        try:
            return Client(address, "AF_UNIX")
        except OSError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)


def main(folder: str) -> None:
    """Serve until standard input ends."""
    servers = SharedServers(Path(folder))
    threading.Thread(target=servers.serve, daemon=True).start()
    sys.stdin.buffer.read()
    servers.close()
    shutil.rmtree(folder, ignore_errors=True)  # the process that made it may have been killed


if __name__ == "__main__":
    main(sys.argv[1])
