"""What one scrape says of a substation: parsed and judged, pure."""

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "evenload_substation_"
WANTED = (
    "power_watts",
    "demand_watts",
    "limit_watts",
    "floor_watts",
    "sessions",
    "connectors",
    "bays",
    "claims_total",
    "ends_total",
    "epoch",
    "snapshot_sequence",
    "operative",
)
VALUE_MAX = 2**53
"""Beyond it a float does not tell one whole number from the next, and soon no database takes the number any more."""
METRIC_NAMES = tuple(PREFIX + name for name in WANTED)


class BadReading(ValueError):
    """A scrape that cannot be trusted as a whole; the substation's last reading ages instead."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One substation's atomic snapshot; power in W, `taken_at_s` on the balancer's monotonic clock."""

    substation: str
    epoch: int
    sequence: int
    power_w: float
    demand_w: float
    limit_w: float
    floor_w: float
    sessions: int
    connectors: int
    bays: int
    claims_total: int
    ends_total: int
    operative: bool
    taken_at_s: float

    def is_newer_than(self, other: "Reading | None") -> bool:
        """Snapshots are ordered by (epoch, sequence), whatever order their scrapes return in."""
        return other is None or (self.epoch, self.sequence) > (other.epoch, other.sequence)


def parse_readings(exposition: str, taken_at_s: float) -> dict[str, Reading]:
    """The readings in one process's exposition, by substation.

    Raises `BadReading` for text that is no exposition, and for a value that is doubled, missing, negative, huge or not
    finite, or a count that is no whole number: a half-trusted load would attract traffic.
    """
    values: dict[str, dict[str, float]] = {}
    try:
        for family in text_string_to_metric_families(exposition):
            for sample in family.samples:
                if sample.name not in METRIC_NAMES:
                    continue
                substation = sample.labels.get("substation", "")
                name = sample.name.removeprefix(PREFIX)
                if name == "ends_total":  # one series per reason
                    ends = values.setdefault(substation, {})
                    ends[name] = _sound(name, ends.get(name, 0.0) + _sound(name, sample.value))
                    continue
                theirs = values.setdefault(substation, {})
                if name in theirs:
                    raise BadReading(f"{name} of {substation!r} stands there twice")
                theirs[name] = _sound(name, sample.value)
    except BadReading:
        raise
    except (ValueError, IndexError, KeyError) as error:
        raise BadReading(f"no Prometheus exposition: {error}") from None
    if not values:
        raise BadReading("no substation in it")
    return {substation: _reading(substation, theirs, taken_at_s) for substation, theirs in values.items()}


def _sound(name: str, value: float) -> float:
    if not 0 <= value <= VALUE_MAX or not (name.endswith("_watts") or value % 1 == 0):
        raise BadReading(f"{name} is {value}")
    return value


def _reading(substation: str, values: dict[str, float], taken_at_s: float) -> Reading:
    missing = [name for name in WANTED if name not in values]
    if missing:
        raise BadReading(f"{substation!r} lacks {', '.join(missing)}")
    return Reading(
        substation=substation,
        epoch=int(values["epoch"]),
        sequence=int(values["snapshot_sequence"]),
        power_w=values["power_watts"],
        demand_w=values["demand_watts"],
        limit_w=values["limit_watts"],
        floor_w=values["floor_watts"],
        sessions=int(values["sessions"]),
        connectors=int(values["connectors"]),
        bays=int(values["bays"]),
        claims_total=int(values["claims_total"]),
        ends_total=int(values["ends_total"]),
        operative=values["operative"] == 1,
        taken_at_s=taken_at_s,
    )
