"""Reads the broker's address; what could lead to another host, vhost or file than the one that is meant is refused."""

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import unquote

from yarl import URL

TLS_OPTIONS = ("cafile", "capath", "cadata", "certfile", "keyfile", "no_verify_ssl")
OPTIONS = ("heartbeat", "auth", *TLS_OPTIONS)
"""What may stand behind the `?` of an address."""

HEARTBEAT_S = 10
"""Where the address names none."""
HEARTBEAT_MAX_S = 600
"""With a longer one, the broker would keep a connection that has fallen silent for half an hour."""

_NOT_ENCODED = (
    "a user, password or vhost holds a sign that must be encoded: write # as %23, / as %2F, ? as %3F, @ as %40, "
    r"[ as %5B, ] as %5D, \ as %5C, a blank as %20 and % as %25"
)
_MUST_BE_ENCODED = re.compile(r"[\[\]\\\s]|%(?![0-9A-Fa-f]{2})")
_PORT_NEEDED = "its port must be a number from 1 to 65535"
_BRACKETS_NEEDED = (
    "its host is an IPv6 address without brackets: write it like amqp://user:password@[::1]:5672/evenload"
)


def broker_host(address: str) -> str:
    """The host in a broker's address; raises `ValueError` with the cure for an address that is none."""
    place, _, query = address.partition("://")[2].partition("?")
    authority, _, vhost = place.partition("/")
    login, _, host_and_port = authority.rpartition("@")
    # An @ that is no part of an option shows that a sign ended user and password early, and that a part of the password
    # would be taken for the host.
    is_cut_short = "@" in vhost or any("@" in one and one.partition("=")[0] not in OPTIONS for one in query.split("&"))
    if "#" in address or is_cut_short or _MUST_BE_ENCODED.search(login) or _MUST_BE_ENCODED.search(vhost):
        raise ValueError(_NOT_ENCODED)
    if lacks_brackets(host_and_port):
        raise ValueError(_BRACKETS_NEEDED)
    try:
        url = URL(address)
        host = url.host or ""
        is_sound = url.scheme in ("amqp", "amqps") and bool(host.encode("idna"))
    except ValueError as error:
        if "port" in str(error).lower():
            raise ValueError(_PORT_NEEDED) from None
        is_sound = False
    if not is_sound:
        raise ValueError("an address like amqp://user:password@127.0.0.1:5672/evenload is needed")
    if url.explicit_port == 0:
        raise ValueError(_PORT_NEEDED)
    return host


def broker_options(address: str) -> list[tuple[str, str]]:
    """The names and values behind the `?`, in order. A plus is a plus, as in `/etc/c++/ca.pem`, and no blank."""
    query = address.partition("#")[0].partition("?")[2]
    pairs = (one.partition("=") for one in query.split("&") if one)
    return [(unquote(name), unquote(value)) for name, _, value in pairs]


def refuse_heartbeat(options: Iterable[tuple[str, str]]) -> None:
    """Raise `ValueError` with the cure where the broker would not take the heartbeat, or would miss nobody for long."""
    for name, value in options:
        if name == "heartbeat" and not (re.fullmatch("[0-9]{1,4}", value) and int(value) <= HEARTBEAT_MAX_S):
            raise ValueError(
                f"its heartbeat must be a whole number of seconds from 0 to {HEARTBEAT_MAX_S}, and is {value!r}: "
                f"write for example heartbeat={HEARTBEAT_S}, or 0 to turn it off"
            )


def lacks_brackets(host_and_port: str) -> bool:
    """Whether a host is an IPv6 address that nothing separates from its port."""
    if "[" in host_and_port or "]" in host_and_port:
        return host_and_port.count("[") != host_and_port.count("]")
    return any(map(_is_ipv6, (host_and_port, host_and_port.rpartition(":")[0])))


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or number."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
