"""A service, or `evenload up`, that is started with wrong settings and refuses them."""

import sys
from collections.abc import Mapping

import pytest
from harness.in_process import Ended, run_to_end

import balancer.service
import gateway.service
import services.cli.main
import substations.service

PASSWORD = "do-not-print-me"
NO_BROKER = f"amqp://someone:{PASSWORD}@127.0.0.1:1/evenload"
SERVICES = ("gateway", "balancer", "substations")
EVERYBODY = (*SERVICES, "up")

ENDS_WITHIN_S = 60
"""The timeout of a test [s]: a program that does not refuse its settings would serve for ever."""

_MAINS = {
    "gateway": gateway.service.main,
    "balancer": balancer.service.main,
    "substations": substations.service.main,
    "up": services.cli.main.main,
}


def refused(who: str, settings: Mapping[str, str], capfd: pytest.CaptureFixture[str]) -> str:
    """Start a program in this process with these `EVENLOAD_…` variables, and return the one line that it says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evenload", "up"])  # services read none
        ended = run_to_end(_MAINS[who], settings, capfd)
    return the_one_line(who, ended)


def the_one_line(who: str, ended: Ended) -> str:
    """What a program said that refused to start; all else about a refusal is checked here."""
    said = ended.errors.splitlines()
    assert ended.code == 2, ended
    assert len(said) == 1, said
    assert said[0].startswith("evenload: " if who == "up" else f"{who}: ")
    assert "Traceback" not in ended.output
    assert PASSWORD not in ended.output + ended.errors
    return said[0]
