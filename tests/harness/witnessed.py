"""What the substations' witness files in a folder tell of a whole stack."""

import collections
import itertools
import json
from pathlib import Path
from typing import Any


def pieces(folder: Path) -> list[dict[str, Any]]:
    """Every start, stop and piece of energy; half a line of a killed writer is left out."""
    files = folder.glob("*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]


def assert_nothing_doubled(folder: Path) -> None:
    """No two tenures delivered energy to one request at the same time, by the dated readings of their ticks."""
    by_request = collections.defaultdict(list)
    for one in pieces(folder):
        if one["event"] == "energy":
            by_request[one["request_id"]].append((one["from_s"], one["to_s"], one["substation"], one["epoch"]))
    assert by_request
    for request_id, spans in by_request.items():
        for (_, until_s, *holder), (from_s, _, *other) in itertools.pairwise(sorted(spans)):
            assert from_s >= until_s or holder == other, (request_id, holder, other)


def witnessed_kwh(folder: Path, request_id: str) -> float:
    """All energy that anybody delivered to a request."""
    return sum(one.get("energy_j", 0) for one in pieces(folder) if one["request_id"] == request_id) / 3_600_000
