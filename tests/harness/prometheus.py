"""Prometheus' answers, and the dashboards' questions."""

import json
import math
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from services.local.folders import cache_dir
from services.local.prometheus_programs import AUTO, PrometheusInstallation, find_prometheus
from services.settings import LocalSettings

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "infra/grafana/dashboards"
GRAFANAS_OWN = {"$__rate_interval": "20s", "$__range": "15m"}
"""Words that Grafana fills in before it asks, as for the last 15 minutes."""

Series = dict[str, str]


def installation() -> PrometheusInstallation:
    """The Prometheus that `make run` would take."""
    return find_prometheus(AUTO, cache_dir(LocalSettings()), print)


def check_configuration(file: Path) -> str:
    """What `promtool` says of a configuration that it finds good; fails for a bad one."""
    found = installation()
    done = subprocess.run(
        [found.program.with_name("promtool"), "check", "config", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def panels() -> list[dict[str, Any]]:
    """Every panel of every dashboard that asks for something."""
    files = sorted(DASHBOARDS.glob("*.json"))
    found = [panel for file in files for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]
    assert found
    return found


def expressions() -> list[str]:
    """Every question of every dashboard, as Grafana would ask it."""
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    for word, value in GRAFANAS_OWN.items():
        asked = [one.replace(word, value) for one in asked]
    assert not any("$" in one for one in asked)
    return asked


class Prometheus:
    """A Prometheus at an address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=20) as response:  # noqa: S310
            return json.loads(response.read())["data"]

    def ask(self, expression: str) -> list[tuple[Series, float]]:
        """The series that an expression finds now, with their values."""
        found = self.get("query", query=expression)
        assert found["resultType"] == "vector", expression
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def by(self, label: str, expression: str) -> dict[str, float]:
        """The values of an expression by one label."""
        return {series[label]: value for series, value in self.ask(expression)}

    def shows(self, expression: str) -> bool:
        """Whether an expression finds anything that could be drawn."""
        return any(math.isfinite(value) for _, value in self.ask(expression))

    def health(self) -> dict[tuple[str, str], str]:
        """Each target's health, by job and instance."""
        labelled = [(one["labels"], one["health"]) for one in self.get("targets")["activeTargets"]]
        return {(labels["job"], labels["instance"]): health for labels, health in labelled}
