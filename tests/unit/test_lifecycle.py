"""A service that is told to end is unready before it begins to drain."""

import asyncio

from prometheus_client import CollectorRegistry

from services.admin import AdminServer
from services.lifecycle import Life
from services.metrics import ServiceMetrics
from services.settings import CommonSettings


async def test_a_service_is_ready_until_it_is_told_to_end_and_unready_before_it_drains():
    registry = CollectorRegistry()
    common = CommonSettings(amqp_url="amqp://u:p@127.0.0.1/v", ledger_url="sqlite:///x")
    life = Life("gateway", "gateway-1", common, ServiceMetrics("gateway", registry), AdminServer(registry))
    assert not life.admin.ready

    serving = asyncio.create_task(life.serve_until_stopped())
    await asyncio.sleep(0)
    assert life.admin.ready
    life.stopping.set()
    await serving

    assert not life.admin.ready
