"""The grid area: which substations there are, read from a grid file (TOML)."""

import math
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.errors import Misconfigured
from services.settings import SUBSTATION_ID

POWER_FACTOR = 0.95
HOSTING_SHARE = 0.8
"""Share of a transformer's active power that is given to charging; the rest belongs to the households."""
CONNECTORS_PER_BAY = 4


class SubstationSpec(BaseModel):
    """One substation as the grid file has it; ratings in kVA and kW, as people write them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    id: Annotated[str, Field(pattern=SUBSTATION_ID.pattern)]
    rated_kva: Annotated[float, Field(ge=1, le=100_000)]
    limit_kw: Annotated[float, Field(ge=0.001)] | None = None
    connectors: Annotated[int, Field(ge=1, le=10_000)]
    bays: Annotated[int, Field(ge=0, le=10_000)] | None = None
    zone: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _limit_within_rating(self) -> "SubstationSpec":
        if self.limit_kw is not None and self.limit_kw > self.rated_kva * POWER_FACTOR:
            raise ValueError(f"limit_kw is above rated_kva × {POWER_FACTOR} = {self.rated_kva * POWER_FACTOR:g} kW")
        return self

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

    @model_validator(mode="after")
    def _ids_differ(self) -> "Grid":
        seen: set[str] = set()
        for spec in self.substation:
            if spec.id in seen:
                raise ValueError(f"substation id {spec.id!r} stands there twice")
            seen.add(spec.id)
        return self

    def pick(self, ids: list[str]) -> list[SubstationSpec]:
        """The substations with these ids, or all where none is named; raises `Misconfigured` for a stranger."""
        known = {spec.id: spec for spec in self.substation}
        for one in ids:
            if one not in known:
                raise Misconfigured(
                    f"EVENLOAD_SUBSTATION_IDS: {one!r} is not in grid area {self.name!r}, which has {', '.join(known)}"
                )
        return [known[one] for one in ids] if ids else list(self.substation)


def load_grid(name_or_path: str) -> Grid:
    """Read a grid file, by path or by the name of one that comes with Evenload.

    Raises `Misconfigured` naming the file, the place in it and what is wrong.
    """
    shipped = resources.files("services") / "grids" / f"{name_or_path}.toml"
    try:
        text = shipped.read_text() if shipped.is_file() else Path(name_or_path).read_text()
        return Grid.model_validate(tomllib.loads(text))
    except OSError as error:
        raise Misconfigured(f"EVENLOAD_GRID: grid file {name_or_path!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"grid file {name_or_path!r} is no TOML: {error}") from None
    except ValidationError as error:
        faults = "; ".join(f"{_place(fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise Misconfigured(f"grid file {name_or_path!r}: {faults}") from None


def _place(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc) or "the file"
