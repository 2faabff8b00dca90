"""Times as people and APIs write them: RFC 3339 in UTC, with milliseconds."""

from datetime import UTC, datetime


def rfc3339(at_ms: int) -> str:
    """`2026-05-01T17:00:00.000Z` from milliseconds since the Unix epoch."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
