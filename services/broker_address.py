"""Reads the broker's address; what could lead to another host than the one that is meant is refused."""

import ipaddress
import re

from yarl import URL

_NOT_ENCODED = (
    "a user, password or vhost holds a # / ? or @ as it is: write # as %23, / as %2F, ? as %3F, @ as %40 and % as %25"
)

_PORT_NEEDED = "its port must be a number from 1 to 65535"


def broker_host(address: str) -> str:
    """The host in a broker's address; raises `ValueError` with the cure for an address that is none."""
    _, *beyond = re.split(r"[/?#]", address.partition("://")[2], maxsplit=1)
    if "#" in address or any("@" in one for one in beyond):
        # Such a sign ends user and password early, and a part of the password would be taken for the host.
        raise ValueError(_NOT_ENCODED)
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


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name or number."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
