"""Metrics that every service has; each process owns one registry and no global one."""

import platform

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from services import __version__

COMMIT_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class ServiceMetrics:
    """What is counted in every process, under the names that dashboards rely on."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # nobody reads the `_created` twin of every counter
        self.registry = registry
        ProcessCollector(registry=registry)
        self.messages_settled = Counter(
            "evenload_messages_settled",
            "Deliveries given back to the broker, by queue and outcome (acked, quarantined, requeued, probe).",
            ["queue", "outcome"],
            registry=registry,
        )
        self.ledger_commit_s = Histogram(
            "evenload_ledger_commit_duration_seconds",
            "Time of one group commit, from taking the lock to the commit's return.",
            registry=registry,
            buckets=COMMIT_BUCKETS_S,
        )
        self.topology_missing = Gauge(
            "evenload_broker_topology_missing",
            "Exchanges, queues, bindings and rights that this process needs at the broker and misses; 0 when well.",
            registry=registry,
        )
        Gauge(
            "evenload_build_info",
            "Always 1; the labels tell what runs.",
            ["version", "python", "service"],
            registry=registry,
        ).labels(__version__, platform.python_version(), service).set(1)
