"""The grid area: which substations there are, read from a grid file (TOML)."""

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from services.errors import Misconfigured
from services.settings import SUBSTATION_ID
from services.text_files import read_text
from services.toml_lines import line_of

POWER_FACTOR = 0.95
HOSTING_SHARE = 0.8
"""Share of a transformer's active power that is given to charging; the rest belongs to the households."""
CONNECTORS_PER_BAY = 4
ALL = "*"
"""In the place of ids: every substation of the grid file."""
_EXTRA = re.compile(r"extra-([1-9][0-9]{0,5})")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class SubstationSpec(BaseModel):
    """One substation as the grid file has it; ratings in kVA and kW, as people write them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    id: Annotated[str, Field(pattern=SUBSTATION_ID.pattern)]
    rated_kva: Annotated[float, Field(ge=1, le=100_000)]
    limit_kw: Annotated[float, Field(ge=0.001)] | None = None
    connectors: Annotated[int, Field(ge=1, le=10_000)]
    bays: Annotated[int, Field(ge=0, le=10_000)] | None = None
    zone: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @field_validator("limit_kw")
    @classmethod
    def _limit_within_rating(cls, value: float | None, info: ValidationInfo) -> float | None:
        rated_kva = info.data.get("rated_kva")  # absent where it is faulty itself
        if value is not None and rated_kva is not None and value > rated_kva * POWER_FACTOR:
            raise ValueError(f"is above rated_kva × {POWER_FACTOR} = {rated_kva * POWER_FACTOR:g} kW")
        return value

    @property
    def rated_w(self) -> int:
        """Active power of the transformer at the usual power factor [W]."""
        return math.floor(self.rated_kva * POWER_FACTOR * 1000)

    @property
    def limit_w(self) -> int:
        """Power that charging may take [W]; by default the hosting share of the rating."""
        if self.limit_kw is None:
            return math.floor(self.rated_w * HOSTING_SHARE)
        return math.floor(self.limit_kw * 1000)

    @property
    def waiting_bays(self) -> int:
        """Places where a vehicle waits for the next free connector; by default one for four connectors."""
        return self.connectors // CONNECTORS_PER_BAY if self.bays is None else self.bays


class Grid(BaseModel):
    """A whole grid area."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    substation: Annotated[list[SubstationSpec], Field(min_length=1)]

    def pick(self, ids: list[str]) -> list[SubstationSpec]:
        """The substations with these ids, or all where they are `*`; raises `Misconfigured` for a stranger."""
        if ids == [ALL]:
            return list(self.substation)
        known = {spec.id: spec for spec in self.substation}
        for one in ids:
            if one not in known:
                raise Misconfigured(
                    f"EVENLOAD_SUBSTATION_IDS: {one!r} is not in grid area {self.name!r}, which has {', '.join(known)}"
                )
        return [known[one] for one in ids]

    def candidates(self, registered: Iterable[str]) -> list[str]:
        """Ids that a process without one may take, in order: the grid file's, then the `registered` extra ones."""
        ids = [spec.id for spec in self.substation]
        extras = sorted(number for number in map(_extra_number, registered) if number is not None)
        return list(dict.fromkeys([*ids, *map(extra_id, extras)]))

    def spec(self, substation: str) -> SubstationSpec:
        """The substation as the grid file has it, else an extra one, of the default type."""
        return next((one for one in self.substation if one.id == substation), extra(substation))


def extra(substation: str) -> SubstationSpec:
    """A substation that is in no grid file, of the type of which the default grid has four."""
    return SubstationSpec(id=substation, rated_kva=400, connectors=40)


def extra_id(number: int) -> str:
    """The id of an extra substation; they count from 1."""
    return f"extra-{number}"


def _extra_number(substation: str) -> int | None:
    match = _EXTRA.fullmatch(substation)
    return int(match[1]) if match else None


def load_grid(name_or_path: str) -> Grid:
    """Read a grid file, by path or by the name of one that comes with Evenload.

    Raises `Misconfigured` naming the file and, for each fault, the line, the key and what would be right.
    """
    grids = resources.files("services") / "grids"
    shipped = grids / f"{name_or_path}.toml"
    try:
        text = read_text(shipped if shipped.is_file() else Path(name_or_path))
    except OSError as error:
        names = sorted(one.name.removesuffix(".toml") for one in grids.iterdir())
        raise Misconfigured(
            f"EVENLOAD_GRID: grid file {name_or_path!r} cannot be read ({error.strerror}): "
            f"give the path of one, or one of those that come along: {', '.join(names)}"
        ) from None
    except ValueError as error:
        raise Misconfigured(f"EVENLOAD_GRID: grid file {name_or_path!r} {error}") from None
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, or more digits or brackets than Python takes
        raise Misconfigured(f"EVENLOAD_GRID: grid file {name_or_path!r} is no TOML: {error}") from None
    try:
        grid = Grid.model_validate(data)
        faults = list(_doubled_ids(grid))
    except ValidationError as error:
        faults = [(fault["loc"], _words(dict(fault))) for fault in error.errors()]
    else:
        if not faults:
            return grid
    told = "; ".join(f"{_place(text, path)}: {words}" for path, words in faults)
    raise Misconfigured(f"EVENLOAD_GRID: grid file {name_or_path!r}: {told}")


def _doubled_ids(grid: Grid) -> Iterator[tuple[tuple[str | int, ...], str]]:
    first: dict[str, int] = {}
    for number, spec in enumerate(grid.substation):
        if spec.id in first:
            yield ("substation", number, "id"), f"{spec.id!r} is the id of substation.{first[spec.id]} already"
        first.setdefault(spec.id, number)


def _words(fault: Mapping[str, Any]) -> str:
    path = fault["loc"]
    match fault["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            known = SubstationSpec.model_fields if len(path) > 1 else Grid.model_fields
            return f"is no key of a grid file; there are {', '.join(known)}"
        case _:
            text = str(fault["msg"]).removeprefix("Value error, ")
            return f"{text[:1].lower()}{text[1:]} (got {repr(fault['input'])[:80]})"


def _place(text: str, path: tuple[str | int, ...]) -> str:
    """Line and key, as far as they can be told; a key that is missing is looked for where it should stand."""
    line = line_of(text, path) or line_of(text, path[:-1])
    key = ".".join(str(part) if _BARE_KEY.fullmatch(str(part)) else repr(part) for part in path)
    return f"line {line}, {key}" if line else key
