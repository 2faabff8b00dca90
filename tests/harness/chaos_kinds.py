"""The kinds of faults: what each does, to which part, for how long at most, and on which database."""

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """What is broken. Two faults at the same time never break the same."""

    SERVICE = "service"
    BROKER = "broker"
    LEDGER = "ledger"


class Kind(StrEnum):
    """What is done; `SPECS` tells more."""

    KILL = "kill"
    KILL_SEVERAL = "kill-several"
    KILL_ALL = "kill-all"
    FREEZE = "freeze"
    LEAVE = "leave"
    CUT = "cut"
    STALL = "stall"
    DESCRIPTORS = "descriptors"
    TWIN = "twin"
    BROKER_KILL = "broker-kill"
    BROKER_FREEZE = "broker-freeze"
    BROKER_LEAVE = "broker-leave"
    BROKER_WIPE = "broker-wipe"
    ALARM = "alarm"
    VHOST = "vhost"
    EXCHANGE = "exchange"
    QUEUE = "queue"
    BINDING = "binding"
    RIGHTS = "rights"
    LEDGER_LOCK = "ledger-lock"
    LEDGER_TRANSACTION = "ledger-transaction"
    DISK_FULL = "disk-full"
    LEDGER_MOVED = "ledger-moved"
    BACKENDS = "postgres-backends"
    POSTGRES_RESTART = "postgres-restart"
    POSTGRES_READ_ONLY = "postgres-read-only"
    POSTGRES_FREEZE = "postgres-freeze"


BOTH = frozenset({"sqlite", "postgres"})
SQLITE = frozenset({"sqlite"})
POSTGRES = frozenset({"postgres"})


@dataclass(frozen=True)
class Spec:
    """A kind of fault."""

    words: str
    part: Part
    longest_s: float = 0.0
    """0 where it is over at once."""
    weight: int = 1
    """So often in a round of all kinds."""
    ledgers: frozenset[str] = BOTH
    is_always_alone: bool = False
    """What must happen is known only while nothing else is broken."""
    ends_broker: bool = False


SPECS = {
    Kind.KILL: Spec("SIGKILL for one service, which is started again", Part.SERVICE, weight=3),
    Kind.KILL_SEVERAL: Spec("SIGKILL for two to four processes in the same instant", Part.SERVICE, weight=2),
    Kind.KILL_ALL: Spec(
        "SIGKILL for every service and the broker in the same instant, as when a supervisor ends",
        Part.SERVICE,
        ends_broker=True,
    ),
    Kind.FREEZE: Spec("SIGSTOP for one service, then SIGCONT", Part.SERVICE, 40.0, weight=2),
    Kind.LEAVE: Spec("SIGTERM for one service, which is started again after a time", Part.SERVICE, 5.0),
    Kind.CUT: Spec("every connection of one service to the broker is reset", Part.SERVICE),
    Kind.STALL: Spec("the connections of one service to the broker stay open and carry nothing", Part.SERVICE, 40.0),
    Kind.DESCRIPTORS: Spec("one service may open no more descriptors than it has", Part.SERVICE, 15.0),
    Kind.TWIN: Spec(
        "a second process under the ids of a living one; it must exit with 2", Part.SERVICE, is_always_alone=True
    ),
    Kind.BROKER_KILL: Spec("SIGKILL for the broker", Part.BROKER, weight=2, ends_broker=True),
    Kind.BROKER_FREEZE: Spec("SIGSTOP for the broker, then SIGCONT", Part.BROKER, 40.0),
    Kind.BROKER_LEAVE: Spec("SIGTERM for the broker, which is started again", Part.BROKER, 5.0, ends_broker=True),
    Kind.BROKER_WIPE: Spec("SIGKILL for the broker, and its data is deleted", Part.BROKER, ends_broker=True),
    Kind.ALARM: Spec("the broker's memory alarm", Part.BROKER, 40.0),
    Kind.VHOST: Spec("the vhost is deleted, and made anew after a time", Part.BROKER, 10.0),
    Kind.EXCHANGE: Spec("one exchange is deleted, and made anew after a time", Part.BROKER, 10.0),
    Kind.QUEUE: Spec(
        "one queue is deleted; the services make their own anew, the schedule the others", Part.BROKER, 10.0, weight=2
    ),
    Kind.BINDING: Spec("one binding is deleted; the same", Part.BROKER, 10.0, weight=2),
    Kind.RIGHTS: Spec("one user of the broker has no rights for a time", Part.BROKER, 10.0),
    Kind.LEDGER_LOCK: Spec(
        "somebody else holds the lock of all writers (SQLite: the side file, PostgreSQL: LOCK TABLE)", Part.LEDGER, 10.0
    ),
    Kind.LEDGER_TRANSACTION: Spec(
        "somebody else has a long transaction (SQLite: BEGIN EXCLUSIVE, PostgreSQL: on every substation's row)",
        Part.LEDGER,
        10.0,
    ),
    Kind.DISK_FULL: Spec(
        "the ledger's disk is full (a small one of its own: only as root)", Part.LEDGER, 10.0, 1, SQLITE
    ),
    Kind.LEDGER_MOVED: Spec(
        "the ledger's file, with its log or without, is moved away and moved back after a time",
        Part.LEDGER,
        10.0,
        ledgers=SQLITE,
    ),
    Kind.BACKENDS: Spec("all connections to PostgreSQL are terminated", Part.LEDGER, ledgers=POSTGRES),
    Kind.POSTGRES_RESTART: Spec("PostgreSQL is shut down and started again", Part.LEDGER, 10.0, ledgers=POSTGRES),
    Kind.POSTGRES_READ_ONLY: Spec("PostgreSQL takes no writes", Part.LEDGER, 10.0, ledgers=POSTGRES),
    Kind.POSTGRES_FREEZE: Spec("SIGSTOP for all of PostgreSQL, then SIGCONT", Part.LEDGER, 20.0, ledgers=POSTGRES),
}


def kinds_for(ledger: str, *, has_small_disk: bool) -> tuple[list[Kind], dict[Kind, str]]:
    """The kinds that can be had, and why each of the others cannot."""
    left_out = {kind: f"not on {ledger}" for kind, spec in SPECS.items() if ledger not in spec.ledgers}
    if not has_small_disk:
        left_out.setdefault(Kind.DISK_FULL, "no small file system can be mounted here: run it as root")
    return [kind for kind in SPECS if kind not in left_out], left_out
