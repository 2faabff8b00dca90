"""A real RabbitMQ of the tests' own, with a fresh vhost for whoever asks."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.suites import find_rabbitmq

from services.broker import topology
from services.local import leftovers
from services.local.ports import free_ports
from services.local.rabbitmq import MEMORY_WATERMARK, BrokerPorts, PrivateBroker, prepare_broker


@dataclass(frozen=True)
class Vhost:
    """A virtual host with the whole topology in it."""

    broker: PrivateBroker
    name: str

    def amqp_url(self, role: str) -> str:
        return self.broker.amqp_url(role).replace(f"/{topology.VHOST}", f"/{self.name}")

    def queue(self, name: str) -> dict:
        return api(self.broker, "GET", f"queues/{self.name}/{name}")


def api(broker: PrivateBroker, method: str, path: str, body: object = None) -> dict:
    """Ask RabbitMQ's management API as its operator."""
    request = urllib.request.Request(  # noqa: S310
        f"{broker.console_url}/api/{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    login = base64.b64encode(f"operator:{broker.passwords['operator']}".encode()).decode()
    request.add_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        text = response.read()
        return json.loads(text) if text else {}


class Node:
    """The processes of a private broker, which a test may kill, freeze, wipe and start again."""

    def __init__(self, broker: PrivateBroker, data: Path, marks: dict[str, str]) -> None:
        self.broker = broker
        self._data = data
        self._marks = marks
        self._specs = broker.processes(data)
        self._processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start what does not run, and wait until it serves."""
        for spec in self._specs:
            if spec.name in self._processes and self._processes[spec.name].poll() is None:
                continue
            with spec.log.open("ab") as log:
                process = self._processes[spec.name] = subprocess.Popen(
                    spec.argv,
                    cwd=spec.cwd or self._data,
                    env=spec.environment_in(os.environ) | self._marks,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            give_up_at = time.monotonic() + 120
            while not asyncio.run(spec.is_ready()):
                assert process.poll() is None, f"{spec.name} ended: {spec.log.read_text()[-2000:]}"
                assert time.monotonic() < give_up_at, f"{spec.name} is not ready: {spec.log.read_text()[-2000:]}"
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL the node."""
        node = self._processes["rabbitmq"]
        node.kill()
        node.wait()

    def stop(self, name: str = "rabbitmq") -> None:
        """End the node, or epmd, in order; by force where that takes too long."""
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def wipe(self) -> None:
        """Delete all that a stopped node has kept; at its next start it knows but its definitions."""
        shutil.rmtree(self.broker.data / "mnesia")
        (self.broker.data / "mnesia").mkdir()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the node by SIGSTOP while the block runs: its sockets take bytes, and nothing answers."""
        node = self._processes["rabbitmq"]
        node.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            node.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says."""
        node = self._specs[1]
        return subprocess.run(
            [str(Path(node.argv[0]).with_name("rabbitmqctl")), *arguments],
            env=node.environment_in(os.environ),
            cwd=node.cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout

    @contextlib.contextmanager
    def alarmed(self) -> Iterator[None]:
        """A memory alarm while the block runs: whoever publishes is blocked."""
        self.ctl("set_vm_memory_high_watermark", "0.0000001")
        try:
            yield
        finally:
            self.ctl("set_vm_memory_high_watermark", "absolute", MEMORY_WATERMARK)


@contextlib.contextmanager
def running_node(data: Path) -> Iterator[Node]:
    """Start a private node, and take it down with everything it started."""
    installation = find_rabbitmq()
    broker = prepare_broker(installation, data, BrokerPorts(*free_ports(5)))
    with guarded(data) as marks:
        node = Node(broker, data, marks)
        try:
            node.start()
            yield node
        finally:
            node.stop()
            node.stop("epmd")


@contextlib.contextmanager
def guarded(data: Path) -> Iterator[dict[str, str]]:
    """Marks for the environment of processes that must not stay should the tests be killed."""
    run = uuid.uuid4().hex
    guardian = subprocess.Popen(
        [sys.executable, "-m", "services.local.guardian", run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield leftovers.marks(data, run)
    finally:
        guardian.stdin.close()
        guardian.wait(30)


@contextlib.contextmanager
def running_broker(data: Path) -> Iterator[PrivateBroker]:
    """A private node for tests that leave it alone."""
    with running_node(data) as node:
        yield node.broker


@contextlib.contextmanager
def fresh_vhost(broker: PrivateBroker) -> Iterator[Vhost]:
    """A vhost with exchanges, queues, policies and every role's rights."""
    name = f"t{uuid.uuid4().hex[:8]}"
    api(broker, "PUT", f"vhosts/{name}")
    for user, role in topology.ROLES.items():
        rights = {"configure": role.configure, "write": role.write, "read": role.read}
        api(broker, "PUT", f"permissions/{name}/{user}", rights)
    api(broker, "POST", f"definitions/{name}", topology.topology())
    try:
        yield Vhost(broker, name)
    finally:
        api(broker, "DELETE", f"vhosts/{name}")
