"""The gateway's life: broker and ledger, then the HTTP port, then traffic."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
from aiohttp import web

from gateway.app import build_app
from gateway.health import ServiceRoutes
from gateway.intake import IntakeQueue
from gateway.load_view import LoadView
from gateway.metrics import GatewayMetrics
from gateway.settings import GatewaySettings
from services.admin import bind
from services.backends import opened
from services.broker.events import LOAD_TABLE, listening
from services.ledger.intake import LedgerIntake
from services.ledger.operating import LedgerOperating
from services.lifecycle import Life, run


async def serve(life: Life, settings: GatewaySettings) -> None:
    """Serve HTTP until told to stop; what was accepted is published before the end."""
    common = life.common
    async with AsyncExitStack() as stack:
        backends = await stack.enter_async_context(opened(life))
        ledger = LedgerIntake(backends.ledger)
        view = LoadView()
        await stack.enter_async_context(listening(backends.consuming, LOAD_TABLE, view.take))
        metrics = GatewayMetrics(life.metrics.registry)
        intake = IntakeQueue(ledger, backends.publisher, settings)
        await stack.enter_async_context(life.background(intake.run(), metrics.follow(ledger)))
        # Entered after the queue it feeds: the port closes before the queue is drained.
        stack.push_async_callback(intake.drain)
        operating = LedgerOperating(backends.ledger)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        app = build_app(
            ledger=ledger,
            operating=operating,
            health=ServiceRoutes(life.instance, life.admin.causes, view, operating, http),
            intake=intake,
            view=view,
            metrics=metrics,
            speed=common.speed,
            settings=settings,
        )
        await stack.enter_async_context(_http(app, settings))
        await life.serve_until_stopped()


@contextlib.asynccontextmanager
async def _http(app: web.Application, settings: GatewaySettings) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5)
    await runner.setup()
    try:
        await bind(runner, settings.host, settings.port, "EVENLOAD_GATEWAY_PORT")
        yield
    finally:
        await runner.cleanup()


def main() -> None:
    """Entry point of `python -m gateway`."""
    run("gateway", GatewaySettings, serve)
