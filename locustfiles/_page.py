"""What locust's page and report show besides their own: the distribution, and why a run cannot start.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

from argparse import Namespace
from collections.abc import Callable

from _distribution import COLUMNS, Distribution, with_section
from _drivers import ArrivalShape, profiles_of
from _options import checked_numbers
from flask import Response, jsonify, request
from locust.env import Environment
from locust.web import WebUI

TAB = "substations"


def extend_page(
    web_ui: WebUI,
    environment: Environment,
    distribution: Callable[[], Distribution],
    unreachable: Callable[[str], str | None],
) -> None:
    """Add a tab and the report's section, and answer a start that cannot succeed with the reason.

    `unreachable` tells why no run can begin against an address.
    """
    web_ui.template_args["extended_tabs"] = [{"title": "Substations", "key": TAB}]
    web_ui.template_args["extended_tables"] = [
        {"key": TAB, "structure": [{"key": key, "title": title} for key, title in COLUMNS.items()]}
    ]

    @web_ui.app.before_request
    def refuse() -> Response | None:
        if request.method != "POST" or not request.path.endswith("/swarm"):
            return None
        try:
            _check_form(environment, picker=web_ui.userclass_picker_is_active)
        except ValueError as fault:
            message = str(fault)
        else:
            message = unreachable(request.form.get("host") or environment.host or "")
        return jsonify({"success": False, "message": message, "host": environment.host}) if message else None

    @web_ui.app.after_request
    def show(response: Response) -> Response:
        if response.status_code == 200 and request.path.endswith("/stats/requests"):
            # Locust keeps an answer for two seconds, with what was added to it.
            answer = {**response.get_json(), "extended_stats": [{"key": TAB, "data": distribution().rows()}]}
            if answer["user_count"] == 0:
                # Locust would show the rate before the last request for as long as the ends are waited for.
                answer |= {"current_rps": 0.0, "current_fail_per_sec": 0.0}
            return jsonify(answer)
        if response.status_code == 200 and request.path.endswith("/stats/report"):
            response.set_data(with_section(response.get_data(as_text=True), distribution()))
        return response


def _check_form(environment: Environment, *, picker: bool) -> None:
    """Raises `ValueError` with the fault of what was typed and chosen."""
    options = Namespace(**{**vars(environment.parsed_options), **checked_numbers(request.form)})
    shape, chosen = environment.shape_class, environment.user_classes
    if picker:
        shape = environment.available_shape_classes.get(request.form.get("shape_class", ""))
        names = request.form.getlist("user_classes") or environment.available_user_classes
        chosen = [environment.available_user_classes[name] for name in names]
    if isinstance(shape, ArrivalShape):
        shape.arrivals(options, profiles_of(chosen))
