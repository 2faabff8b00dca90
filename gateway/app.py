"""The gateway's routes, put together."""

from aiohttp import web

from gateway.bodies import BODY_MAX_BYTES
from gateway.charge_requests import ChargeRequestRoutes
from gateway.health import ServiceRoutes
from gateway.intake import IntakeQueue
from gateway.load_view import LoadView
from gateway.metrics import GatewayMetrics
from gateway.problems import problem_details
from gateway.request_charge import RequestChargeRoute
from gateway.settings import GatewaySettings
from gateway.substations import SubstationRoutes
from gateway.targets import TargetRoutes
from gateway.waits import WaitForecast
from services.ledger.intake import Intake
from services.ledger.operating import Operating


def build_app(
    *,
    ledger: Intake,
    operating: Operating,
    intake: IntakeQueue,
    view: LoadView,
    health: ServiceRoutes,
    metrics: GatewayMetrics,
    speed: float,
    settings: GatewaySettings,
) -> web.Application:
    """The HTTP application; what it serves is the API's contract."""
    requests = ChargeRequestRoutes(ledger, intake, WaitForecast(ledger, view), speed, settings.wait_max_s)
    substations = SubstationRoutes(view, metrics, operating)
    app = web.Application(client_max_size=BODY_MAX_BYTES, middlewares=[problem_details(metrics)])
    app.add_routes(
        [
            web.post("/charge-requests", requests.post),
            web.get("/charge-requests", requests.get_all),
            web.get("/charge-requests/{request_id}", requests.get),
            web.delete("/charge-requests/{request_id}", requests.delete),
            web.get("/substations", substations.get_all),
            web.get("/substations/{substation}", substations.get),
            web.put("/substations/{substation}/limit", substations.put_limit),
            web.put("/substations/{substation}/operational", substations.put_operational),
            web.get("/services", health.get),
            web.get("/targets", TargetRoutes(operating).get),
            web.post("/request_charge", RequestChargeRoute(requests).post),
        ]
    )
    return app
