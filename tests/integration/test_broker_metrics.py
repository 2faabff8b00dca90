"""What Prometheus asks of RabbitMQ is told by each of its versions under the same names."""

import re
import urllib.parse
import urllib.request

from harness.prometheus import ROOT, expressions
from harness.stack import until

from services.broker import topology

FAMILIES = ("queue_coarse_metrics", "queue_consumer_count")
REFRESHED_WITHIN_S = 60


def test_the_broker_tells_every_metric_that_the_dashboards_draw(vhost):
    asked = set(re.findall(r"rabbitmq_\w+", " ".join(expressions())))
    assert asked == {"rabbitmq_detailed_queue_messages", "rabbitmq_detailed_queue_consumers"}
    assert f"family: [{', '.join(FAMILIES)}]" in (ROOT / "infra/prometheus/prometheus.yml").read_text()
    query = urllib.parse.urlencode({"family": FAMILIES, "vhost": vhost.name}, doseq=True)

    def told() -> dict[str, float]:
        address = f"{vhost.broker.metrics_url}/detailed?{query}"
        with urllib.request.urlopen(address, timeout=30) as response:  # noqa: S310
            lines = response.read().decode().splitlines()
        return {line.split("{")[0]: float(line.split()[-1]) for line in lines if f'queue="{topology.INTAKE}"' in line}

    until(lambda: asked <= told().keys(), "the figures of the queues", REFRESHED_WITHIN_S)
    assert {told()[one] for one in asked} == {0}
