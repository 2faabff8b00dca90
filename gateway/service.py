"""The gateway's life: broker and ledger, then the HTTP port, then traffic."""

from contextlib import AsyncExitStack

import aiohttp

from gateway.app import build_app
from gateway.health import ServiceRoutes
from gateway.http_server import serving
from gateway.intake import IntakeQueue
from gateway.load_view import LoadView
from gateway.metrics import GatewayMetrics
from gateway.settings import GatewaySettings
from services.backends import broker_opened, ledger_opened
from services.broker.events import LOAD_TABLE, listen_for_ever
from services.ledger.intake import LedgerIntake
from services.ledger.operating import LedgerOperating
from services.lifecycle import Life, run


async def serve(life: Life, settings: GatewaySettings) -> None:
    """Serve HTTP until told to stop; what was accepted is published before the end."""
    common = life.common
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(ledger_opened(life))
        broker = await stack.enter_async_context(broker_opened(life))
        if not await life.wait_for(broker.usable.wait()):
            return
        ledger = LedgerIntake(connection)
        view = LoadView()
        metrics = GatewayMetrics(life.metrics.registry)
        intake = IntakeQueue(ledger, broker.publisher, settings)
        # A gateway that began without the broker goes on accepting, whatever the broker allows it later.
        hearing = listen_for_ever(
            broker.consuming, LOAD_TABLE, view.take, refuses_to_start=broker.consuming.has_connected
        )
        await stack.enter_async_context(life.background(intake.run(), metrics.follow(ledger), hearing))
        # Entered after the queue it feeds: the port closes before the queue is drained.
        stack.push_async_callback(intake.drain)
        operating = LedgerOperating(connection)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        app = build_app(
            ledger=ledger,
            operating=operating,
            health=ServiceRoutes(life.instance, life.admin, view, operating, http),
            intake=intake,
            view=view,
            metrics=metrics,
            speed=common.speed,
            settings=settings,
        )
        await stack.enter_async_context(serving(app, settings, metrics))
        await life.serve_until_stopped()


def main() -> None:
    """Entry point of `python -m gateway`."""
    run("gateway", GatewaySettings, serve)
