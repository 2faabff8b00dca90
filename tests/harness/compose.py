"""The compose files as a user has them: a copy of the checkout, brought up, asked, broken and taken down."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness.docker_engine import Engine

Found = TypeVar("Found")

ROOT = Path(__file__).parents[2]
WITHOUT_GRAFANA = ROOT / "tests/compose/without_grafana.yml"
PORTS = ("GATEWAY_PORT", "LOCUST_PORT", "PROMETHEUS_PORT", "CONSOLE_PORT", "GRAFANA_PORT")
UP_WITHIN_S = 600
HAPPENS_WITHIN_S = 180


@dataclass(frozen=True)
class Project:
    """One `docker compose` project, its ports free ones on loopback."""

    engine: Engine
    folder: Path
    name: str
    files: tuple[str, ...]
    ports: dict[str, int]

    def compose(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `docker compose` with this project's files; without an engine of ours, Grafana is there, too."""
        files = [*self.files, *([str(WITHOUT_GRAFANA)] if self.engine.is_ours else [])]
        named = [word for file in files for word in ("--file", file)]
        # Found as a plugin beside an installed docker, and as a program of its own among unpacked ones.
        command = ["docker-compose"] if self.engine.is_ours else ["docker", "compose"]
        # No .env of the checkout's: it works without, and a developer's must not matter.
        command += ["--project-name", self.name, "--project-directory", str(self.folder), "--env-file", "/dev/null"]
        return self.engine.run(*command, *named, *words, check=check, cwd=self.folder, env=self.variables, **options)

    @property
    def variables(self) -> dict[str, str]:
        """Free ports, and a tag of its own, so that nobody's image is replaced."""
        return {"IMAGE_TAG": self.name, **{name: str(port) for name, port in self.ports.items()}}

    def up(self, *words: str) -> None:
        """Start everything and wait until it is healthy; asserts with the last words of all services."""
        done = self.compose("up", "--build", "--detach", "--wait", *words, check=False, timeout_s=UP_WITHIN_S)
        assert done.returncode == 0, done.stderr[-3000:] + self.compose("logs", "--tail", "30", check=False).stdout

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "20")
        self.engine.run("docker", "image", "rm", f"evenload:{self.name}", check=False)

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers that run."""
        return self.compose("ps", "--quiet", "--status", "running", service).stdout.split()

    def inspect(self, container: str) -> dict[str, Any]:
        return json.loads(self.engine.run("docker", "inspect", container).stdout)[0]

    def inside(self, container: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.engine.run("docker", "exec", container, *command, check=check)

    def kill(self, container: str) -> None:
        """kill -9 the whole container; it stays away until `start`."""
        self.engine.run("docker", "kill", "--signal", "KILL", container)

    def start(self, container: str) -> None:
        self.engine.run("docker", "start", container)

    def health(self) -> dict[str, list[str]]:
        """The health of each container, by service."""
        found: dict[str, list[str]] = {}
        for line in self.compose("ps", "--all", "--format", "json").stdout.splitlines():
            one = json.loads(line)
            found.setdefault(one["Service"], []).append(one["Health"] or f"{one['State']} {one['ExitCode']}")
        return found

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['GATEWAY_PORT']}"

    def get(self, path: str, port: str = "GATEWAY_PORT") -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=30) as response:
            return json.loads(response.read())

    def post_form(self, path: str, fields: dict[str, Any], port: str) -> Any:
        form = urllib.parse.urlencode(fields).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}{path}", form, timeout=30) as response:
            return json.loads(response.read())

    def query(self, expression: str) -> dict[str, float]:
        """Ask Prometheus; values by the `substation` label, or under the empty string."""
        answer = self.get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}", "PROMETHEUS_PORT")
        return {one["metric"].get("substation", ""): float(one["value"][1]) for one in answer["data"]["result"]}

    def rush(self, requests: int, over_s: float, energy_kwh: float = 2) -> subprocess.Popen[str]:
        """Begin a rush by the command line; `ended` waits for it."""
        command = [Path(sys.executable).parent / "evenload", "rush", "--json", "--url", self.url, "--until", "ended",
                   "--requests", str(requests), "--over", str(over_s), "--energy-kwh", str(energy_kwh)]  # fmt: skip
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(rush: subprocess.Popen[str]) -> dict[str, Any]:
    """What a rush told at its end; asserts that all of it was accepted and has ended."""
    out, err = rush.communicate(timeout=600)
    told = json.loads(out)
    assert rush.returncode == 0, (told, err)
    assert told["ended"] == told["accepted"] == told["requests"], told
    assert not told["refused"], told
    return told


def until(looked: Callable[[], Found], what: str, within_s: float = HAPPENS_WITHIN_S) -> Found:
    """Look until it is true, or a thing that is; asserts with `what` and the last look."""
    give_up_at = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < give_up_at:
        try:
            last = found = looked()
            if found:
                return found
        except (urllib.error.URLError, ConnectionError, TimeoutError, KeyError, ValueError) as error:
            last = error
        time.sleep(0.5)
    raise AssertionError(f"not within {within_s:g} s: {what}; last: {last!r}")


def copy_of_the_checkout(folder: Path) -> Path:
    """What git would commit now, so that nothing else of this folder gets into the image."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@contextlib.contextmanager
def up(project: Project, *words: str) -> Iterator[Project]:
    """Bring a project up, and down again with its volumes."""
    try:
        project.up(*words)
        yield project
    finally:
        project.down()
