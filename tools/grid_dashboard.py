"""The dashboard *Grid*, as code; `make dashboards` writes it for Grafana.

Several balancers tell of one load table, several gateways of one ledger: what they all know is their maximum, what
each has done itself is their sum.
"""

import itertools
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
)

FILE = Path(__file__).resolve().parents[1] / "infra/grafana/dashboards/grid.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="evenload-prometheus")
RATE = "[$__rate_interval]"
EVEN_OVER = "[5m]"

Query = tuple[str, str]
"""An expression, and the legend of what it finds."""


def of_each(metric: str) -> str:
    """A substation's own figure; while it changes hands two processes may tell of it."""
    return f"max by (substation) (evenload_substation_{metric})"


UTILISATION = f"{of_each('demand_watts')} / ({of_each('limit_watts')} > 0)"
ASSIGNED = f"sum by (substation) (increase(evenload_balancer_assignments_total{EVEN_OVER}))"


def quantiles(metric: str, by: str = "") -> list[Query]:
    legend = f"{{{{{by}}}}} " if by else ""
    labels = f"le, {by}" if by else "le"
    return [
        (f"histogram_quantile({at}, sum by ({labels}) (rate({metric}_bucket{RATE})))", f"{legend}p{at * 100:.0f}")
        for at in (0.5, 0.99)
    ]


def queries(panel: timeseries.Panel | stat.Panel, asked: list[Query], *, instant: bool) -> None:
    panel.datasource(SOURCE)
    for ref, (expression, legend) in zip("ABCDEFGH", asked, strict=False):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref).datasource(SOURCE)
        panel.with_target(query.instant() if instant else query.range())


def graph(title: str, description: str, unit: str, *asked: Query, width: int = 8) -> timeseries.Panel:
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .min(0)
        .line_width(2)
        .fill_opacity(8)
        .height(7)
        .span(width)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    queries(panel, list(asked), instant=False)
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    return panel.fill_opacity(40).stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))


def dashed(panel: timeseries.Panel, names: str) -> timeseries.Panel:
    """Draws whatever is called like the regular expression `names` as a bound."""
    return panel.override_by_regexp(
        names,
        [
            DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [8, 6]}),
            DynamicConfigValue(id_val="custom.fillOpacity", value=0),
            DynamicConfigValue(id_val="custom.lineWidth", value=1),
        ],
    )


def figure(
    title: str,
    description: str,
    unit: str,
    *asked: Query,
    yellow_from: float | None = None,
    red_from: float | None = None,
    none: str = "–",
) -> stat.Panel:
    steps = [Threshold(value=None, color="green")]
    steps += [
        Threshold(value=value, color=color)
        for value, color in ((yellow_from, "yellow"), (red_from, "red"))
        if value is not None
    ]
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .height(4)
        .span(4)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .no_value(none)
    )
    queries(panel, list(asked), instant=True)
    return panel


AT_A_GLANCE = (
    figure(
        "Broken promises",
        "Rows that broke a promise when a balancer audited the ledger, in the time shown. Always 0.",
        "short",
        ("max(max_over_time(evenload_balancer_conservation_breaches_total[$__range]))", "breaches"),
        red_from=1,
    ),
    figure(
        "Silent targets",
        "Processes that do not answer Prometheus. A substation that has left in order is none.",
        "short",
        ("count(up) - sum(up)", "silent"),
        red_from=1,
    ),
    figure(
        "Unevenness",
        "Highest ÷ mean over the substations: of demand ÷ limit now, and of the assignments of the last five minutes. "
        "1 is even; nothing is shown while nobody charges. Where transformers differ, the first is the one to look at.",
        "short",
        (f"max({UTILISATION}) / (avg({UTILISATION}) > 0)", "demand ÷ limit"),
        (f"max({ASSIGNED}) / (avg({ASSIGNED}) > 0)", "assignments"),
        yellow_from=1.15,
        red_from=1.4,
    ).decimals(2),
    figure(
        "Waiting room",
        "Requests that wait for a substation.",
        "short",
        ('max(evenload_gateway_requests{state="accepted"})', "waiting"),
        yellow_from=50,
    ),
    figure(
        "Connectors in use",
        "Vehicles at a connector, as a part of all connectors.",
        "percentunit",
        (f"sum({of_each('sessions')}) / sum({of_each('connectors')})", "in use"),
        yellow_from=0.9,
    ),
    figure(
        "Age of the load table",
        "The oldest reading that a balancer chooses by. Above three scrape intervals it is passed over.",
        "s",
        ("max(evenload_balancer_load_table_age_seconds)", "age"),
        yellow_from=2,
        red_from=3,
    ).decimals(1),
)

GRID = (
    graph(
        "Utilisation",
        "Demand ÷ limit of each substation. Even load: the lines lie on each other. Above 100 % it is shared.",
        "percentunit",
        (UTILISATION, "{{substation}}"),
    ),
    dashed(
        graph(
            "Power and limit",
            "Power given to all sessions, and the limit that is applied, dashed. Power is never above it.",
            "watt",
            (of_each("power_watts"), "{{substation}}"),
            (of_each("limit_watts"), "{{substation}} limit"),
        ),
        ".* limit",
    ),
    graph(
        "Sessions",
        "Vehicles at a connector, of each substation.",
        "short",
        (of_each("sessions"), "{{substation}}"),
    ),
    dashed(
        graph(
            "Connectors and bays",
            "Vehicles at a connector and in a waiting bay of all substations, and how many there are, dashed.",
            "short",
            (f"sum({of_each('sessions')})", "connectors in use"),
            (f"sum({of_each('connectors')})", "connectors there"),
            (f"sum({of_each('bays_occupied')})", "bays in use"),
            (f"sum({of_each('bays')})", "bays there"),
        ),
        ".* there",
    ),
    graph(
        "Assignments",
        "Requests that balancers send to each substation, per second.",
        "reqps",
        (f"sum by (substation) (rate(evenload_balancer_assignments_total{RATE}))", "{{substation}}"),
    ),
    graph(
        "Leases",
        "Renewals per second, about one for each substation; and how often sessions stood still because "
        "a lease had run out.",
        "short",
        (f"sum by (substation) (rate(evenload_substation_lease_renewals_total{RATE}))", "{{substation}} renewed"),
        (f"sum by (substation) (increase(evenload_substation_fenced_total{RATE}))", "{{substation}} stood still"),
    ),
)

REQUESTS = (
    stacked(
        graph(
            "Open requests",
            "Requests that wait (accepted), are on their way (assigned) or charge, from the ledger.",
            "short",
            (
                'max by (state) (evenload_gateway_requests{state=~"accepted|assigned|charging"})',
                "{{state}}",
            ),
        )
    ),
    graph(
        "Ended requests",
        "Requests in each terminal state, as many as the ledger still keeps.",
        "short",
        ('max by (state) (evenload_gateway_requests{state!~"accepted|assigned|charging"})', "{{state}}"),
    ),
    graph(
        "Answers",
        "Answers of all gateways per second: 202 is accepted, 4xx the client's fault, 503 the ledger's or a full "
        "backlog. Reading (200) is left out.",
        "reqps",
        (f'sum by (outcome) (rate(evenload_gateway_http_requests_total{{outcome!="200"}}{RATE}))', "{{outcome}}"),
    ),
    graph(
        "Time to accept",
        "From a charge request's arrival to its commit.",
        "s",
        *quantiles("evenload_gateway_accept_duration_seconds"),
    ),
    graph(
        "Time to decide",
        "To choose a substation for one request.",
        "s",
        *quantiles("evenload_balancer_decision_duration_seconds"),
    ),
    graph(
        "Time to commit",
        "Of one group commit to the ledger, from taking the lock to the commit's return.",
        "s",
        *quantiles("evenload_ledger_commit_duration_seconds", by="job"),
    ),
    graph(
        "Reassignments",
        "Assignments that balancers took back, by reason.",
        "short",
        (f"sum by (reason) (increase(evenload_balancer_reassignments_total{RATE}))", "{{reason}}"),
    ),
    graph(
        "Swept",
        "Rows that the balancers' sweep moved: where they went to, or why.",
        "short",
        (f"sum by (kind) (increase(evenload_balancer_swept_total{RATE}))", "{{kind}}"),
    ),
    graph(
        "Targets",
        "Processes that answer Prometheus, by job.",
        "short",
        ("sum by (job) (up)", "{{job}}"),
    ),
)

QUEUE = '{job="rabbitmq-queues",queue=~"charge[.].+"}'
BROKER = (
    graph(
        "Messages",
        "Messages in each queue, ready and unacknowledged. A message carries up to 100 requests.",
        "short",
        (f"sum by (queue) (rabbitmq_detailed_queue_messages{QUEUE})", "{{queue}}"),
        width=12,
    ),
    graph(
        "Consumers",
        "Consumers of each queue: every balancer at charge.intake, one process at each substation's queue.",
        "short",
        (f"sum by (queue) (rabbitmq_detailed_queue_consumers{QUEUE})", "{{queue}}"),
        width=12,
    ),
)


def grid() -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard("Grid")
        .uid("evenload-grid")
        .description("Evenload on one screen: how even the load is, and whether requests get through.")
        .tags(["evenload"])
        .readonly()
        .timezone("browser")
        .time("now-15m", "now")
        .refresh("5s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
    )
    number = itertools.count(1)  # of its own, so that a link to a panel stays
    for title, panels in (("At a glance", AT_A_GLANCE), ("Grid", GRID), ("Requests", REQUESTS), ("Broker", BROKER)):
        board.with_row(dashboard.Row(title).id(next(number)))
        for panel in panels:
            board.with_panel(panel.id(next(number)))
    return board


def rendered() -> str:
    """The file's text."""
    return JSONEncoder(sort_keys=True, indent=2).encode(grid().build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(rendered())
