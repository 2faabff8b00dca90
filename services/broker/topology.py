"""The broker's topology as data: exchanges, queues, policies, users and their rights.

Services use the names; the broker gets all of it as one definitions file at its boot (`definitions`), because a
service may not be able to declare what it only uses. A queue never shares its exchange's name: RabbitMQ's
permissions match names, not kinds. Queue arguments are immutable, so all but the type stands in policies.
"""

import base64
import hashlib
import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VHOST = "evenload"

REQUESTS = "charge.requests"
ASSIGNMENTS = "charge.assignments"
EVENTS = "charge.events"
DEAD = "charge.dead"
EXCHANGES: Mapping[str, str] = {REQUESTS: "direct", ASSIGNMENTS: "direct", EVENTS: "topic", DEAD: "fanout"}

INTAKE = "charge.intake"
GRAVEYARD = "charge.graveyard"
SUBSTATION_PREFIX = "charge.substation."

QUORUM: Mapping[str, Any] = {"x-queue-type": "quorum"}
CLASSIC: Mapping[str, Any] = {"x-queue-type": "classic"}

EVENT_QUEUE_ARGUMENTS: Mapping[str, Any] = {"x-max-length": 1_000, "x-overflow": "drop-head"}
"""Of each reader's own exclusive queue: an event is a hint, and an old one is worth nothing."""

PROBE = "probe"
"""The type of a message that only shows that a queue is bound; whoever consumes it acks it."""

MEND = "run `evenload mend` (elsewhere than beside `make run`: with --console URL)"
"""The cure of a thing that is missing; a service does not know whether it runs beside `make run`."""

DELIVERY_LIMIT = 20
TAKE_APART_AFTER = 3
"""Deliveries after which an envelope is handled hint by hint, so that one poisoned hint is found."""


def substation_queue(substation: str) -> str:
    """The queue of one substation; its routing key on `charge.assignments` is the substation's id."""
    return SUBSTATION_PREFIX + substation


POLICIES: tuple[Mapping[str, Any], ...] = (
    {
        "name": "charge-work",
        "pattern": r"^charge\.(intake|substation\..+)$",
        "apply-to": "queues",
        "priority": 1,
        "definition": {
            "delivery-limit": DELIVERY_LIMIT,
            "max-length": 100_000,
            "overflow": "reject-publish",
            "dead-letter-exchange": DEAD,
            "dead-letter-strategy": "at-least-once",
        },
    },
    {
        "name": "charge-graveyard",
        "pattern": r"^charge\.graveyard$",
        "apply-to": "queues",
        "priority": 1,
        "definition": {"max-length": 10_000, "overflow": "drop-head"},
    },
)


@dataclass(frozen=True)
class Role:
    """A broker user's rights, as RabbitMQ's regular expressions; `tags` open its console.

    `publishes_to` and `hears` name exchanges whose rights a service looks for at its start.
    """

    configure: str
    write: str
    read: str
    tags: tuple[str, ...] = ()
    publishes_to: tuple[str, ...] = ()
    hears: str = EVENTS

    @property
    def rights(self) -> dict[str, str]:
        """The patterns by the broker's names of the rights."""
        return {"configure": self.configure, "write": self.write, "read": self.read}

    @property
    def exchanges(self) -> tuple[str, ...]:
        """All exchanges that the role has a right on."""
        return tuple(dict.fromkeys((*self.publishes_to, self.hears)))


_OWN_EVENTS = "amq_[0-9a-f]{32}"
_OWN_QUEUE = r"charge\.substation\.[A-Za-z0-9-]+"

ROLES: Mapping[str, Role] = {
    "gateway": Role(
        configure=f"^{_OWN_EVENTS}$",
        write=rf"^(charge\.requests|charge\.events|{_OWN_EVENTS})$",
        read=rf"^(charge\.events|{_OWN_EVENTS})$",
        publishes_to=(REQUESTS,),
    ),
    "balancer": Role(
        configure=f"^{_OWN_EVENTS}$",
        write=rf"^(charge\.assignments|charge\.events|charge\.dead|{_OWN_EVENTS})$",
        read=rf"^(charge\.intake|charge\.events|{_OWN_EVENTS})$",
        publishes_to=(ASSIGNMENTS, EVENTS, DEAD),
    ),
    "substation": Role(
        configure=f"^{_OWN_QUEUE}$",
        write=rf"^(charge\.events|charge\.dead|{_OWN_QUEUE})$",
        read=rf"^(charge\.assignments|{_OWN_QUEUE})$",
        publishes_to=(DEAD,),
        hears=ASSIGNMENTS,
    ),
    # Looks at everything in the console, and touches nothing.
    "monitor": Role(configure="^$", write="^$", read="^$", tags=("monitoring",)),
    "operator": Role(configure=".*", write=".*", read=".*", tags=("administrator",)),
}


def definitions(passwords: Mapping[str, str]) -> dict[str, Any]:
    """The definitions file for a broker whose users are the keys of `passwords`, each a name in `ROLES`."""
    return {
        "vhosts": [{"name": VHOST}],
        "users": [
            {
                "name": user,
                "password_hash": password_hash(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": ",".join(ROLES[user].tags),
            }
            for user, password in passwords.items()
        ],
        "permissions": [{"user": user, "vhost": VHOST, **ROLES[user].rights} for user in passwords],
        **{kind: [{**one, "vhost": VHOST} for one in ones] for kind, ones in topology().items()},
    }


def topology() -> dict[str, list[dict[str, Any]]]:
    """Exchanges, queues, bindings and policies, without the vhost they live in."""
    return {
        "exchanges": [
            {"name": name, "type": kind, "durable": True, "auto_delete": False, "internal": False, "arguments": {}}
            for name, kind in EXCHANGES.items()
        ],
        "queues": [
            {"name": INTAKE, "durable": True, "auto_delete": False, "arguments": dict(QUORUM)},
            {"name": GRAVEYARD, "durable": True, "auto_delete": False, "arguments": dict(CLASSIC)},
        ],
        "bindings": [
            {
                "source": exchange,
                "destination": queue,
                "destination_type": "queue",
                "routing_key": "",
                "arguments": {},
            }
            for exchange, queue in ((REQUESTS, INTAKE), (DEAD, GRAVEYARD))
        ],
        "policies": [dict(policy) for policy in POLICIES],
    }


def password_hash(password: str, salt: bytes | None = None) -> str:
    """RabbitMQ's salted SHA-256 hash: base64(salt + sha256(salt + password)), with a salt of 4 bytes."""
    salt = salt or secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def main() -> None:
    """Write the definitions file for a broker whose users have the passwords `<user>=<password> …` given."""
    passwords = dict(argument.split("=", 1) for argument in sys.argv[1:])
    json.dump(definitions(passwords), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
