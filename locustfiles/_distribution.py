"""How many requests each substation got, for terminal, page and report: pure, for every locustfile of this folder.

Not to be run by itself: `locust -f locustfiles` leaves files out whose names begin with an underscore.
"""

from collections.abc import Iterable
from html import escape

MAX_OVER_MEAN = "max ÷ mean"
COLUMNS = {"substation": "Substation", "requests": "# requests that charged there", "ratio": "÷ mean"}
"""The titles by the keys of `rows`."""


class Distribution:
    """Requests by the substation that they first charged at; one that got none counts too."""

    def __init__(self, substations: Iterable[str] = ()) -> None:
        self.requests = dict.fromkeys(sorted(substations), 0)

    def count(self, substation: str) -> None:
        self.requests[substation] = self.requests.get(substation, 0) + 1

    def reset(self) -> None:
        self.requests = dict.fromkeys(self.requests, 0)

    @property
    def max_over_mean(self) -> float | None:
        """1.0 is even; None until something was counted."""
        whole = sum(self.requests.values())
        return max(self.requests.values()) * len(self.requests) / whole if whole else None

    def rows(self) -> list[dict[str, str | int]]:
        """A row for each substation, and one for the whole."""
        whole = sum(self.requests.values())
        if not self.requests:
            return []
        mean = whole / len(self.requests)
        rows = [
            {"substation": name, "requests": count, "ratio": _ratio(count / mean if mean else None)}
            for name, count in self.requests.items()
        ]
        return [*rows, {"substation": f"all ({MAX_OVER_MEAN})", "requests": whole, "ratio": _ratio(self.max_over_mean)}]

    def as_text(self) -> str:
        """For a terminal."""
        lines = [f"{row['substation']:<24} {row['requests']:>12} {row['ratio']:>9}" for row in self.rows()]
        return "\n".join([f"{'Substation':<24} {'# requests':>12} {'÷ mean':>9}", *lines])

    def as_html(self) -> str:
        """A section for locust's report, in the report's own colours."""
        head = "".join(f"<th>{escape(title)}</th>" for title in COLUMNS.values())
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(row[key]))}</td>" for key in COLUMNS) + "</tr>" for row in self.rows()
        )
        return (
            f'<section id="substations">{_STYLE}<h2>Substations</h2>'
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></section>"
        )


_STYLE = """<style>
#substations { box-sizing: border-box; max-width: 1200px; margin: 0 auto 40px; padding: 0 24px;
  font-family: Roboto, Helvetica, Arial, sans-serif; }
#substations h2 { font-size: 2.125rem; font-weight: 400; margin: 0 0 8px; }
#substations table { width: 100%; border-collapse: collapse; font-size: 0.875rem; }
#substations th, #substations td { text-align: left; padding: 16px; border-bottom: 1px solid rgba(128, 128, 128, 0.3); }
#substations th { font-weight: 500; }
#substations tbody tr:last-child td { font-weight: 500; }
</style>"""


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def with_section(report: str, distribution: Distribution) -> str:
    """Locust's HTML report with the distribution at its end."""
    head, end, tail = report.rpartition("</body>")
    return f"{head}{distribution.as_html()}{end}{tail}" if end else report + distribution.as_html()
