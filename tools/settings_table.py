"""The README's configuration table, made from the settings classes; `make readme` writes it."""

from pathlib import Path

from pydantic.fields import FieldInfo

from balancer.settings import BalancerSettings
from gateway.settings import GatewaySettings
from services.settings import CommonSettings, ConsoleSettings, LocalSettings, Settings, env_name
from substations.settings import SubstationSettings

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- settings: written by `make readme` -->\n"
END = "<!-- end of settings -->\n"
READ_BY: dict[type[Settings], str] = {
    LocalSettings: "`make run`",
    CommonSettings: "all services",
    GatewaySettings: "gateway",
    BalancerSettings: "balancer",
    SubstationSettings: "substations",
    ConsoleSettings: "`evenload dead`, `mend`, `doctor`",
}


def table() -> str:
    lines = ["| variable | default | read by | |", "|---|---|---|---|"]
    seen: set[str] = set()
    for kind, reader in READ_BY.items():
        for name, field in kind.model_fields.items():
            variable = env_name(kind, name)
            if variable not in seen:
                seen.add(variable)
                lines.append(f"| `{variable}` | {default(field)} | {reader} | {field.description} |")
    return "\n".join(lines) + "\n"


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "(must be set; `make run` does)"
    value = field.default
    if value is None or value == "":
        return "–"
    return f"`{int(value) if isinstance(value, bool) else value}`"


def with_table(text: str) -> str:
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return head + BEGIN + table() + END + tail


def undescribed() -> list[str]:
    """Settings that nobody could understand from the table."""
    return [
        env_name(kind, name) for kind in READ_BY for name, field in kind.model_fields.items() if not field.description
    ]


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
