"""What a balancer measures."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from balancer.load_table import Estimate

DECISION_BUCKETS_S = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)


class BalancerMetrics:
    """Assignments, decisions, scrapes, and the load table as it was last refreshed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.assignments = Counter(
            "evenload_balancer_assignments",
            "Requests assigned, by substation and policy.",
            ["substation", "policy"],
            registry=registry,
        )
        self.decision_s = Histogram(
            "evenload_balancer_decision_duration_seconds",
            "Time to choose a substation for one request.",
            registry=registry,
            buckets=DECISION_BUCKETS_S,
        )
        self.scrapes = Counter(
            "evenload_balancer_scrapes", "Scrapes by result (ok, failed, rejected).", ["result"], registry=registry
        )
        self.reassignments = Counter(
            "evenload_balancer_reassignments",
            "Assignments this balancer took back, by reason.",
            ["reason"],
            registry=registry,
        )
        self.swept = Counter(
            "evenload_balancer_swept", "Rows that the sweep moved, by kind.", ["kind"], registry=registry
        )
        self.breaches = Counter(
            "evenload_balancer_conservation_breaches",
            "Rows that broke a promise when the ledger was audited; always 0.",
            registry=registry,
        )
        self._utilisation = Gauge(
            "evenload_balancer_load_table_utilisation_ratio",
            "Estimated demand ÷ limit.",
            ["substation"],
            registry=registry,
        )
        self._age_s = Gauge(
            "evenload_balancer_load_table_age_seconds",
            "Age of the oldest reading in the load table.",
            registry=registry,
        )

    def show(self, estimates: Sequence[Estimate]) -> None:
        """Take over a refreshed table; substations that left it leave the gauges too."""
        self._utilisation.clear()
        for one in estimates:
            self._utilisation.labels(one.substation).set(one.utilisation)
        self._age_s.set(max((one.age_s for one in estimates), default=0.0))
