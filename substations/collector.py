"""The substations' gauges, rendered from their state by one collector, so that a scrape is one atomic snapshot."""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from substations.substation import Substation

PREFIX = "evenload_substation_"
LABELS = ("substation",)

GAUGES: Sequence[tuple[str, str, Callable[[Substation], float]]] = (
    ("power_watts", "Power given to all sessions.", lambda one: one.power_w),
    ("demand_watts", "Power that the sessions would take without a limit.", lambda one: one.demand_w),
    ("limit_watts", "Power that charging may take.", lambda one: one.limit_w),
    ("floor_watts", "Least power of a running session.", lambda one: one.floor_w),
    ("rated_watts", "Active power of the transformer.", lambda one: one.rated_w),
    ("utilisation_ratio", "Power ÷ limit.", lambda one: one.power_w / one.limit_w if one.limit_w else 0.0),
    ("sessions", "Vehicles at a connector.", lambda one: len(one.sessions)),
    ("connectors", "Connectors.", lambda one: one.connectors),
    ("bays", "Places to wait for the next free connector.", lambda one: one.bays),
    ("bays_occupied", "Vehicles in a bay.", lambda one: len(one.in_bays)),
    ("epoch", "Tenure of the process that hosts the substation.", lambda one: one.epoch),
    ("snapshot_sequence", "Number of this snapshot within the epoch.", lambda one: one.sequence),
    ("operative", "1 while the substation takes requests.", lambda one: one.is_operative and not one.stands_still),
)
COUNTERS: Sequence[tuple[str, str, Callable[[Substation], float]]] = (
    ("claims", "Number of the last claim in this epoch.", lambda one: one.claims_total),
    ("energy_joules", "Energy delivered since the process started.", lambda one: one.energy_total_j),
    ("lease_renewals", "Times that the lease was renewed.", lambda one: one.renewals_total),
    ("fenced", "Times that sessions stood still because the lease had run out.", lambda one: one.fenced_total),
)


class SubstationCollector(Collector):
    """Renders every substation that is held; each rendering is a snapshot with a number of its own.

    One that waits for its lease is not shown: another process may speak for it.
    """

    def __init__(self, substations: Sequence[Substation]) -> None:
        self._substations = substations

    def describe(self) -> Iterable[Metric]:
        """The families' names, so that a scrape can ask for some of them."""
        return self._families([])

    def collect(self) -> Iterable[Metric]:
        """One snapshot of all; runs on the event loop, so nothing changes in between."""
        held = [one for one in self._substations if one.is_held]
        for one in held:
            one.sequence += 1
        return self._families(held)

    def _families(self, substations: Sequence[Substation]) -> list[Metric]:
        families: list[Metric] = []
        for name, text, value in GAUGES:
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=LABELS)
            for one in substations:
                gauge.add_metric([one.id], value(one))
            families.append(gauge)
        for name, text, value in COUNTERS:
            counter = CounterMetricFamily(PREFIX + name, text, labels=LABELS)
            for one in substations:
                counter.add_metric([one.id], value(one))
            families.append(counter)
        ends = CounterMetricFamily(
            PREFIX + "ends", "Sessions ended in this epoch, by reason.", labels=(*LABELS, "reason")
        )
        load = GaugeMetricFamily("substation_load", "Power in watts, under the original system's name.", labels=LABELS)
        for one in substations:
            load.add_metric([one.id], one.power_w)
            for reason, count in one.ends_by_reason.items():
                ends.add_metric([one.id, reason], count)
        return [*families, ends, load]
