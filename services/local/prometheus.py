"""Prometheus beside the stack, and no condition for it: looked for while others start, started when they are up."""

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from services.broker import topology
from services.errors import EvenloadError
from services.local import leftovers
from services.local.folders import cache_dir
from services.local.plan import Plan
from services.local.ports import HOST
from services.local.process import ProcessSpec
from services.local.prometheus_programs import OFF, PrometheusInstallation, find_prometheus
from services.local.supervisor import Say, Supervisor
from services.settings import PREFIX

CONFIGURATION = "prometheus.yml"
RETENTION = ("--storage.tsdb.retention.time=1d", "--storage.tsdb.retention.size=256MB")
READY_TIMEOUT = aiohttp.ClientTimeout(total=2)
PATIENCE_S = 10.0
"""So long a stack that is up waits to be told of, whether Prometheus is there or not."""


@dataclass(frozen=True)
class Scraped:
    """Whom Prometheus asks, by addresses like `127.0.0.1:8081`."""

    gateway_url: str
    gateway: str
    balancer: str
    rabbitmq: str | None
    """The node's metrics, where it is ours."""


def configuration(scraped: Scraped, own: str) -> str:
    """The configuration file; its jobs and labels are those of `infra/prometheus`, so that dashboards fit both."""
    jobs: list[dict[str, Any]] = [
        _job("gateway", scraped.gateway),
        _job("balancer", scraped.balancer),
        {
            "job_name": "substations",
            "http_sd_configs": [{"url": f"{scraped.gateway_url}/targets", "refresh_interval": "5s"}],
            "relabel_configs": [{"source_labels": ["__meta_evenload_substations"], "target_label": "instance"}],
        },
        _job("prometheus", own),
    ]
    if scraped.rabbitmq is not None:
        # The node refreshes its figures every 5 s.
        jobs += [
            _job("rabbitmq", scraped.rabbitmq, scrape_interval="5s"),
            _job(
                "rabbitmq-queues",
                scraped.rabbitmq,
                instance="rabbitmq",
                scrape_interval="5s",
                metrics_path="/metrics/detailed",
                params={"family": ["queue_coarse_metrics", "queue_consumer_count"], "vhost": [topology.VHOST]},
            ),
        ]
    # JSON is YAML, too.
    return json.dumps({"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": jobs}, indent=2)


def _job(name: str, address: str, *, instance: str = "", **settings: Any) -> dict[str, Any]:
    static = {"targets": [address], "labels": {"instance": instance or name}}
    return {"job_name": name, **settings, "static_configs": [static]}


class Prometheus:
    """The Prometheus of a stack, unless it is off; as a context it looks for the program from the beginning on."""

    def __init__(self, plan: Plan, supervisor: Supervisor, say: Say) -> None:
        self._plan = plan
        self._supervisor = supervisor
        self._say = say
        self._finding: asyncio.Task[PrometheusInstallation] | None = None
        self._starting: asyncio.Task[str | None] | None = None

    async def __aenter__(self) -> Self:
        wish = self._plan.settings.prometheus
        if wish not in OFF:
            marks = leftovers.marks(self._plan.data, self._plan.run)
            looking = asyncio.to_thread(find_prometheus, wish, cache_dir(self._plan.settings), self._say, marks)
            self._finding = asyncio.create_task(looking)
        return self

    async def __aexit__(self, *_error: object) -> None:
        # The thread cannot be told to stop, but what it waits for ends with the run.
        tasks = [task for task in (self._finding, self._starting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def start(self, scraped: Scraped, port: int) -> str | None:
        """Start it once it is found; returns its address, None where there is none (yet), which is said."""
        if self._finding is None:
            return None
        self._starting = asyncio.create_task(self._start(self._finding, scraped, port))
        await asyncio.wait({self._starting}, timeout=PATIENCE_S)
        if self._starting.done():
            return self._starting.result()
        self._say("Prometheus is not there yet; its address follows")
        self._starting.add_done_callback(self._tell)
        return None

    def _tell(self, starting: "asyncio.Task[str | None]") -> None:
        if not starting.cancelled() and (url := starting.result()):
            self._say(f"  Prometheus         {url}")

    async def _start(self, finding: asyncio.Task[PrometheusInstallation], scraped: Scraped, port: int) -> str | None:
        own = f"{HOST}:{port}"
        folder = self._plan.data / "prometheus"
        try:
            installation = await finding
            folder.mkdir(exist_ok=True)
            (folder / CONFIGURATION).write_text(configuration(scraped, own))
            await self._supervisor.start(process(installation, folder, own, self._plan.logs / "prometheus.log"))
        except (EvenloadError, OSError) as error:
            self._say(f"going on without Prometheus: {error}")
            return None
        return f"http://{own}"


def process(installation: PrometheusInstallation, folder: Path, own: str, log: Path) -> ProcessSpec:
    """A Prometheus that serves at `own` and keeps its data in `folder`, beside its configuration."""

    async def is_ready() -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with aiohttp.request("GET", f"http://{own}/-/ready", timeout=READY_TIMEOUT) as response:
                return response.status == 200
        return False

    return ProcessSpec(
        name="prometheus",
        argv=(
            str(installation.program),
            *installation.arguments,
            f"--config.file={folder / CONFIGURATION}",
            f"--storage.tsdb.path={folder / 'data'}",
            *RETENTION,
            f"--web.listen-address={own}",
        ),
        environment=installation.environment,
        log=log,
        is_ready=is_ready,
        inherits=frozenset(one for one in os.environ if not one.startswith(PREFIX)),  # those are for our services
        ready_within_s=300,  # after a kill it reads its log of writes again
        is_optional=True,
    )
