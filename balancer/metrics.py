"""What a balancer measures."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from balancer.load_table import Estimate
from balancer.policies import PolicyName
from services.ledger.states import Reason, Status

SCRAPE_RESULTS = ("ok", "failed", "rejected")
REASSIGNED_FOR = (Reason.UNCLAIMED, Reason.SUBSTATION_LOST)
SWEPT_KINDS = (
    *(Reason.SUBSTATION_LOST, Reason.UNCLAIMED),
    *(Status.COMPLETED, Status.STOPPED, Status.FAILED, Status.EXPIRED),
    "forgotten",
)
DECISION_BUCKETS_S = (0.00001, 0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03)


class BalancerMetrics:
    """Assignments, decisions, scrapes, and the load table as it was last refreshed.

    Every label value that is known is shown from the start: the first increase of a series that comes out of nothing is
    lost to a rate.
    """

    def __init__(self, registry: CollectorRegistry, policy: PolicyName = "least-utilisation") -> None:
        self._policy = policy
        self.assignments = Counter(
            "evenload_balancer_assignments",
            "Requests assigned, by substation and policy.",
            ["substation", "policy"],
            registry=registry,
        )
        self.unreached = Counter(
            "evenload_balancer_unreached",
            "Requests assigned whose message reached no queue or was not confirmed; the substation's heartbeat finds "
            "them.",
            ["substation"],
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

        for counter, values in (
            (self.scrapes, SCRAPE_RESULTS),
            (self.reassignments, REASSIGNED_FOR),
            (self.swept, SWEPT_KINDS),
        ):
            for value in values:
                counter.labels(value)

    def show(self, estimates: Sequence[Estimate]) -> None:
        """Take over a refreshed table; substations that left it leave the gauges too."""
        self._utilisation.clear()
        for one in estimates:
            self._utilisation.labels(one.substation).set(one.utilisation)
            self.assignments.labels(one.substation, self._policy)
            self.unreached.labels(one.substation)
        self._age_s.set(max((one.age_s for one in estimates), default=0.0))
