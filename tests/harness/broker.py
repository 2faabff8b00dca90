"""A real RabbitMQ of the tests' own, with a fresh vhost for whoever asks."""

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.broker import topology
from services.local import leftovers
from services.local.rabbitmq import BrokerPorts, PrivateBroker, prepare_broker
from services.local.rabbitmq_programs import find_rabbitmq
from services.local.stack import cache_dir, free_ports
from services.settings import LocalSettings


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


@contextlib.contextmanager
def running_broker(data: Path) -> Iterator[PrivateBroker]:
    """Start a private node, and take it down with everything it started."""
    installation = find_rabbitmq(cache_dir(LocalSettings()), print)
    broker = prepare_broker(installation, data, BrokerPorts(*free_ports(5)))
    run = uuid.uuid4().hex
    # Should the tests be killed, their broker must not stay.
    guardian = subprocess.Popen(
        [sys.executable, "-m", "services.local.guardian", run],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    processes: list[subprocess.Popen] = []
    try:
        for spec in broker.processes(data):
            with spec.log.open("wb") as log:
                process = subprocess.Popen(
                    spec.argv,
                    cwd=data,
                    env={**os.environ, **spec.environment, **leftovers.marks(data, run)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            processes.append(process)
            give_up_at = time.monotonic() + 120
            while not asyncio.run(spec.is_ready()):
                assert process.poll() is None, f"{spec.name} ended: {spec.log.read_text()[-2000:]}"
                assert time.monotonic() < give_up_at, f"{spec.name} is not ready: {spec.log.read_text()[-2000:]}"
                time.sleep(0.1)
        yield broker
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        guardian.stdin.close()
        guardian.wait(30)


@contextlib.contextmanager
def fresh_vhost(broker: PrivateBroker) -> Iterator[Vhost]:
    """A vhost with exchanges, queues, policies and every role's rights."""
    name = f"t{uuid.uuid4().hex[:8]}"
    api(broker, "PUT", f"vhosts/{name}")
    for user, role in topology.ROLES.items():
        rights = {"configure": role.configure, "write": role.write, "read": role.read}
        api(broker, "PUT", f"permissions/{name}/{user}", rights)
    api(broker, "POST", f"definitions/{name}", topology.topology())
    yield Vhost(broker, name)
    api(broker, "DELETE", f"vhosts/{name}")
