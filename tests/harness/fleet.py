"""Services started one by one and never again, as containers are, with their addresses in files as secrets are."""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.broker import Vhost, guarded
from harness.stack import ROOT, Api, readiness, until

from services.local.ports import free_ports
from services.local.stack import PYTHON_MODULE


class Member:
    """A process of the fleet."""

    def __init__(self, package: str, log: Path, environment: dict[str, str]) -> None:
        self.admin_port, self.port = free_ports(2)
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*PYTHON_MODULE, package],
                cwd=ROOT,
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")},
                    "EVENLOAD_ADMIN_PORT": str(self.admin_port),
                    **({"EVENLOAD_GATEWAY_PORT": str(self.port)} if package == "gateway" else {}),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of an event."""
        lines = (json.loads(line) for line in self.text().splitlines() if line.startswith("{") and line.endswith("}"))
        return [line for line in lines if line["event"] == event]

    def text(self) -> str:
        """All that it said."""
        return self._log.read_text()

    @property
    def substation(self) -> str | None:
        """The substation that it took; None as long as it has none."""
        return next((line["substation"] for line in self.said("substation_chosen")), None)

    def until_ready(self) -> "Member":
        def is_ready() -> bool:
            assert self.process.poll() is None, self.text()
            return readiness(self.admin_port)[0] == 200

        until(is_ready, f"a ready process, see {self._log}")
        return self

    def metrics(self) -> str:
        """What a scrape of it brings."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics", timeout=20) as response:
            return response.read().decode()

    def kill(self) -> None:
        """SIGKILL, also where it is frozen."""
        self.process.kill()
        self.process.wait(30)

    def leave(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(30)


class Fleet(Api):
    """A ledger and a vhost, and who works on them; asked at its gateway."""

    def __init__(self, folder: Path, vhost: Vhost, settings: dict[str, str]) -> None:
        self._folder = folder
        self._vhost = vhost
        self._settings = {
            "EVENLOAD_LEDGER_URL_FILE": self._secret("ledger_url", f"sqlite:///{folder / 'ledger.sqlite'}"),
            "EVENLOAD_LOG_FORMAT": "json",
            **settings,
        }
        self.members: list[Member] = []
        self.gateway, self.balancer = self.start("gateway"), self.start("balancer")
        super().__init__(f"http://127.0.0.1:{self.gateway.port}")

    def _secret(self, name: str, value: str) -> str:
        (self._folder / name).write_text(f"{value}\n")
        return str(self._folder / name)

    def start(self, package: str) -> Member:
        """One more process, which is not ready yet."""
        role = package.removesuffix("s")
        amqp_url = self._secret(f"amqp_url_of_{role}", self._vhost.amqp_url(role))
        log = self._folder / f"{package}-{len(self.members)}.log"
        self.members.append(Member(package, log, {"EVENLOAD_AMQP_URL_FILE": amqp_url, **self._settings}))
        return self.members[-1]

    def start_substations(self, count: int) -> list[Member]:
        """So many more at once, each ready."""
        return [one.until_ready() for one in [self.start("substations") for _ in range(count)]]

    def host_of(self, substation: str) -> Member:
        """The process that runs and took a substation."""
        return next(one for one in self.members if one.process.poll() is None and one.substation == substation)


@contextmanager
def fleet(folder: Path, vhost: Vhost, **settings: str) -> Iterator[Fleet]:
    """A fleet of a gateway and a balancer, to begin with; nothing of it runs at the end."""
    with guarded(folder) as marks:
        one = Fleet(folder, vhost, {**settings, **marks})
        try:
            for member in list(one.members):
                member.until_ready()
            yield one
        finally:
            for member in one.members:
                member.kill()
