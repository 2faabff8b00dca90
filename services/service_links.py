"""Variables that an orchestrator writes for its own services, and that look like settings of ours.

Kubernetes gives every container variables for each service of its namespace, and `docker run --link` does so for each
linked container. Where such a service is called `evenload` or `evenload-…`, they begin like our settings.
"""

import re
from collections.abc import Mapping

_FAMILY = r"EVENLOAD(?:_[A-Z0-9_]+)?"
_PROTOCOL = r"(?:TCP|UDP|SCTP)"
_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://")
_NUMBER = re.compile(r"\d+")
_ANY = re.compile(r"")
_SHAPES = (
    (re.compile(rf"{_FAMILY}_SERVICE_HOST"), _ANY),
    (re.compile(rf"{_FAMILY}_SERVICE_PORT(?:_[A-Z0-9_]+)?"), _NUMBER),
    (re.compile(rf"{_FAMILY}_PORT"), _ADDRESS),
    (re.compile(rf"{_FAMILY}_PORT_\d+_{_PROTOCOL}"), _ADDRESS),
    (re.compile(rf"{_FAMILY}_PORT_\d+_{_PROTOCOL}_(?:PROTO|PORT|ADDR)"), _ANY),
    # Docker: which container is linked under which name, and what its own environment holds.
    (re.compile(rf"{_FAMILY}_NAME"), re.compile(r"/")),
    (re.compile(rf"{_FAMILY}_ENV_.+"), _ANY),
)
"""Names, and how the value of each begins. A name alone is not enough: `EVENLOAD_GATEWAY_PORT` is a setting of ours."""

CURE = "set enableServiceLinks: false in the pod's specification"


def is_service_link(name: str, value: str) -> bool:
    """Whether an orchestrator wrote this variable, so that it tells us nothing."""
    return any(shape.fullmatch(name) and begins.match(value) for shape, begins in _SHAPES)


def service_links(environ: Mapping[str, str]) -> list[str]:
    """The names of all such variables, in order."""
    return sorted(name for name, value in environ.items() if is_service_link(name, value))
