"""What a broker must have for Evenload, held against what its console shows; `compare` is pure."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.broker import topology
from services.cli.console import Console, ConsoleRefused

Rows = Sequence[Mapping[str, Any]]

PLACES = {
    "exchanges": "/api/exchanges/{vhost}",
    "queues": "/api/queues/{vhost}",
    "bindings": "/api/bindings/{vhost}",
    "policies": "/api/policies/{vhost}",
    "permissions": "/api/vhosts/{vhost}/permissions",
    "users": "/api/users/",
}
"""Where the console shows each kind of thing."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that the broker must have; `fault` says what is wrong with it and is empty where all is well.

    `evenload mend` cures it, unless another `cure` is named.
    """

    kind: str
    name: str
    fault: str = ""
    cure: str = ""

    @property
    def is_mendable(self) -> bool:
        """Whether something is wrong that may be put right without taking anything away."""
        return bool(self.fault) and not self.cure


@dataclass(frozen=True, slots=True)
class Shown:
    """What the console shows of a vhost: rows of each kind, or None for a kind that the user may not see."""

    vhost: str
    has_vhost: bool
    rows: Mapping[str, Rows | None]

    @property
    def unseen(self) -> list[str]:
        """The kinds that the user may not see."""
        return [kind for kind, rows in self.rows.items() if rows is None]


async def look(console: Console) -> Shown:
    """Look at everything; raises `ConsoleUnusable`, and `ConsoleRefused` where the user may not see the vhost."""
    exchanges = await console.rows(PLACES["exchanges"])
    if exchanges is None:
        return Shown(console.vhost, has_vhost=False, rows={})
    rows: dict[str, Rows | None] = {"exchanges": exchanges}
    for kind, place in PLACES.items():
        try:
            rows[kind] = rows.get(kind) or await console.rows(place) or []
        except ConsoleRefused:
            rows[kind] = None
    return Shown(console.vhost, has_vhost=True, rows=rows)


def compare(shown: Shown, *, are_users_ours: bool) -> list[Part]:
    """Each thing that the broker must have, as far as the user may see its kind.

    Where `are_users_ours`, each role must have a user of its name. Else only those users of services count that are
    there: a person may have any rights at a broker of others.
    """
    if not shown.has_vhost:
        return [Part("vhost", shown.vhost, f"vhost {shown.vhost!r} is missing")]
    parts = [Part("vhost", shown.vhost)]
    for kind, compared in _COMPARED.items():
        rows = shown.rows[kind]
        if rows is not None:
            parts += compared(rows)
    policies, queues = shown.rows["policies"], shown.rows["queues"]
    if policies is not None and queues is not None:
        parts += _overruled(policies, [row["name"] for row in queues])
    permissions, users = shown.rows["permissions"], shown.rows["users"]
    if permissions is not None and users is not None:
        parts += _rights(permissions, {row["name"] for row in users}, are_users_ours=are_users_ours)
    return parts


def _exchanges(rows: Rows) -> Iterator[Part]:
    found = {row["name"]: row for row in rows}
    for name, kind in topology.EXCHANGES.items():
        if name not in found:
            yield Part("exchange", name, f"exchange {name!r} is missing")
        elif wrong := _unlike(found[name], {"type": kind, "durable": True, "internal": False, "arguments": {}}):
            yield Part("exchange", name, f"exchange {name!r} is of another kind ({wrong})", _delete_first("exchange"))
        else:
            yield Part("exchange", name)


def _queues(rows: Rows) -> Iterator[Part]:
    found = {row["name"]: row for row in rows}
    for name, arguments in ((topology.INTAKE, topology.QUORUM), (topology.GRAVEYARD, topology.CLASSIC)):
        if name not in found:
            yield Part("queue", name, f"queue {name!r} is missing")
        else:
            yield _queue(found[name], arguments, _delete_first("queue"))
    for name, row in found.items():
        if name.startswith(topology.SUBSTATION_PREFIX):
            cure = "delete that queue at the console: its substation makes it anew within seconds"
            yield _queue(row, topology.QUORUM, cure)


def _queue(row: Mapping[str, Any], arguments: Mapping[str, Any], cure: str) -> Part:
    name, kind = row["name"], arguments["x-queue-type"]
    others = {key: value for key, value in row["arguments"].items() if key != "x-queue-type"}
    flat = {**row, "arguments": others}
    wrong = _unlike(flat, {"type": kind, "durable": True, "auto_delete": False, "arguments": {}})
    members, online = len(row.get("members", [])), len(row.get("online", []))
    if wrong:
        return Part("queue", name, f"queue {name!r} is of another kind ({wrong})", cure)
    if members and 2 * online <= members:
        said = f"queue {name!r} stands still: {online} of its {members} nodes are there"
        return Part("queue", name, said, "start the broker's other nodes")
    return Part("queue", name)


def _bindings(rows: Rows) -> Iterator[Part]:
    found = {(row["source"], row["destination"], row["routing_key"]) for row in rows}
    wanted = [(one["source"], one["destination"], one["routing_key"]) for one in topology.topology()["bindings"]]
    for source, queue, key in wanted:
        is_there = (source, queue, key) in found
        said = "" if is_there else f"queue {queue!r} is not bound to exchange {source!r}"
        yield Part("binding", f"{source} → {queue}", said)


def _policies(rows: Rows) -> Iterator[Part]:
    found = {row["name"]: row for row in rows}
    for policy in topology.POLICIES:
        name = policy["name"]
        if name not in found:
            yield Part("policy", name, f"policy {name!r} is missing")
            continue
        flat = dict(found[name]) | found[name]["definition"]
        wrong = _unlike(flat, {key: policy[key] for key in ("pattern", "apply-to")} | policy["definition"])
        yield Part("policy", name, f"policy {name!r} was changed ({wrong})" if wrong else "")


def _overruled(rows: Rows, queues: Collection[str]) -> Iterator[Part]:
    """Policies of others that take the place of ours: of all that match a queue, the broker applies only one."""
    ours = {policy["name"]: policy for policy in topology.POLICIES}
    priority = {row["name"]: row["priority"] for row in rows}
    for row in rows:
        if row["name"] in ours or row["apply-to"] == "exchanges":
            continue
        for name, policy in ours.items():
            taken = [one for one in queues if _matches(policy["pattern"], one) and _matches(row["pattern"], one)]
            if taken and row["priority"] >= priority.get(name, policy["priority"]):
                said = f"policy {row['name']!r} takes the place of {name!r} at queue {min(taken)!r}"
                cure = f"give {row['name']!r} a priority below {policy['priority']}, or delete it"
                yield Part("policy", row["name"], said, cure)


NAMES = (*topology.EXCHANGES, topology.INTAKE, topology.GRAVEYARD, topology.substation_queue("any"), f"amq_{'0' * 32}")
"""A name of each kind of thing that a right may be about."""
PEOPLE = tuple(user for user, role in topology.ROLES.items() if role.tags)
"""Users that no service has. At a broker of others, these names may be those of somebody else."""


def _rights(rows: Rows, users: Collection[str], *, are_users_ours: bool) -> Iterator[Part]:
    granted = {row["user"]: row for row in rows}
    for user, role in topology.ROLES.items():
        if user in PEOPLE and not are_users_ours:
            continue
        if user not in users:
            if are_users_ours:
                cure = "stop the stack and start it again with `make run`: its broker makes its users at the start"
                yield Part("rights", user, f"user {user!r} is missing", cure)
            continue
        row = granted.get(user)
        if row is None:
            yield Part("rights", user, f"user {user!r} has no rights in the vhost")
            continue
        lacking = [
            f"{right} {name}" for right, pattern in role.rights.items() for name in _lacking(pattern, row[right])
        ]
        yield Part("rights", user, f"user {user!r} lacks rights ({', '.join(lacking)})" if lacking else "")


def rights_to_grant(user: str, shown: Shown) -> dict[str, str]:
    """The rights of a user of ours: what it has, and beside it what it lacks; nothing is taken away."""
    granted = next((row for row in shown.rows["permissions"] or () if row["user"] == user), {})
    return {right: _widened(granted.get(right, ""), by=wanted) for right, wanted in topology.ROLES[user].rights.items()}


def _widened(pattern: str, *, by: str) -> str:
    if not pattern:  # it matches nothing
        return by
    return f"(?:{pattern}){_beside(by)}" if _lacking(by, pattern) else pattern


def _beside(pattern: str) -> str:
    return f"|(?:{pattern})"


def _lacking(wanted: str, granted: str) -> list[str]:
    """The names that a wanted pattern matches, and a granted one does not."""
    # Not every pattern that the broker reads can be read here; what was granted beside it is known nevertheless.
    if granted.endswith(_beside(wanted)):
        return []
    return [name for name in NAMES if _matches(wanted, name) and not _matches(granted, name)]


_COMPARED: Mapping[str, Callable[[Rows], Iterator[Part]]] = {
    "exchanges": _exchanges,
    "queues": _queues,
    "bindings": _bindings,
    "policies": _policies,
}


def _unlike(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Which fields differ from what is wanted, in words; empty where none does."""
    found = {key: row.get(key, "absent") for key in wanted}
    return ", ".join(f"{key} is {found[key]}, not {want}" for key, want in wanted.items() if found[key] != want)


def _matches(pattern: str, name: str) -> bool:
    """Whether the broker would take a name to match; an empty pattern matches none there."""
    try:
        return bool(pattern) and re.search(pattern, name) is not None
    except re.error:
        return False


def _delete_first(thing: str) -> str:
    return f"delete that {thing} at the console, which loses no request, and {topology.MEND}"
