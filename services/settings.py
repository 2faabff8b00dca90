"""Settings from `EVENLOAD_…` variables, checked as a whole before anything starts."""

import difflib
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from yarl import URL

from services import crash_points
from services.broker_address import broker_host, broker_options, is_loopback, refuse_heartbeat
from services.errors import Misconfigured
from services.logs import LogFormat
from services.service_links import is_service_link
from services.signs import path_fault, refuse_lookalike, refuse_stray_signs, refuse_undecodable
from services.text_files import read_text

PREFIX = "EVENLOAD_"
FILE_SUFFIX = "_FILE"
"""After the name of any variable: the path of a file that holds its value, as Docker and Kubernetes give secrets."""
_SERVICE_PREFIXES = ("EVENLOAD_GATEWAY_", "EVENLOAD_BALANCER_", "EVENLOAD_SUBSTATION_")

Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

GUESSED_PASSWORDS = ("", "guest", "changeme")
"""Refused where the broker is not on this machine."""

SUBSTATION_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9-]{0,62}$")


_MAY_BE_PATH = "may be a path"
NameOrPath = Annotated[str, _MAY_BE_PATH]
_FREE_TEXT = ("password", "ledger_url")
"""Fields in which an invisible character may be meant; the ledger's address is judged where it is read."""


class Settings(BaseSettings):
    """The base of all settings classes: frozen, and an empty variable counts as absent."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **_others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read variables with `given` only: pydantic's own source also takes names in small letters."""
        texts = {field: given(env_name(settings_cls, field)) for field in settings_cls.model_fields}
        told = {field: text for field, text in texts.items() if text is not None}
        return init_settings, InitSettingsSource(settings_cls, told)

    @field_validator("*", mode="before")
    @classmethod
    def _is_as_meant(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) and info.field_name is not None:
            field = cls.model_fields[info.field_name]
            is_path = Path in (field.annotation, *get_args(field.annotation)) or _MAY_BE_PATH in field.metadata
            refuse_stray_signs(value, is_password=info.field_name == "password")
            if is_path and (fault := path_fault(value)):
                raise ValueError(fault)
            if not is_path and info.field_name != "ledger_url":
                refuse_undecodable(value)
            if not is_path and info.field_name not in _FREE_TEXT:
                refuse_lookalike(value)
        return value


class CommonSettings(Settings):
    """What every service needs to know; variables `EVENLOAD_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    amqp_url: str = Field(
        description="Broker, `amqp://user:password@host:port/vhost`; `amqps://` encrypts. Percent-encode the password. "
        "`?heartbeat=` sets RabbitMQ's heartbeat timeout [s], at most 600, 10 where it is absent, 0 to turn it off. "
        "With `amqps://`, `?cafile=`, `?capath=` or `?cadata=` name whom to trust, `?certfile=` and `?keyfile=` your "
        "own certificate, with which `?auth=external` logs in; `?no_verify_ssl=1` trusts everybody."
    )
    ledger_url: str = Field(
        description="Ledger, `sqlite:///path/to/ledger.sqlite` on one host, "
        "or `postgresql://user:password@host:port/database` and what else libpq takes as such an address. "
        "Percent-encode the password."
    )
    ledger_shared: bool = Field(
        False, description="Say 1 where services run on several hosts: a SQLite ledger is then refused."
    )
    speed: float = Field(60, gt=0, le=100_000, description="Session seconds per wall second.")
    lease_s: float = Field(
        5,
        ge=0.5,
        le=3_600,
        description="A substation that could not renew its lease for so long stands still; a fifth later others may go "
        "on with its sessions. The same for all services of a ledger.",
    )
    envelope_max: int = Field(100, ge=1, le=100, description="Most requests in one message; 1 for watching.")
    grid: NameOrPath = Field("default", description="Grid file (TOML), or the name of one that comes along.")
    admin_host: str = Field("127.0.0.1", description="Where health and metrics are served.")
    admin_port: Port | None = Field(None, description="Port of health and metrics; chosen free when absent.")
    instance: Name | None = Field(
        None,
        description="Name of this process in logs, connections and consumers; by default its service's with a random "
        "tail, or `substation-<id>` after the substation that it took.",
    )
    startup_timeout_s: float = Field(30, gt=0, description="How long to wait for broker and ledger at start.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe line kept.")
    log_format: LogFormat = Field("auto", description="`json`, `console`, or `auto` (console on a terminal).")

    crash_point: str | None = Field(
        None, description="For tests: the name of a place in the code at which the process kills itself."
    )

    @field_validator("crash_point")
    @classmethod
    def _known_crash_point(cls, value: str | None) -> str | None:
        if value is not None:
            crash_points.parse(value)
        return value

    @field_validator("amqp_url")
    @classmethod
    def _amqp_scheme(cls, value: str) -> str:
        host = broker_host(value)
        refuse_heartbeat(broker_options(value))
        if (URL(value).password or "") in GUESSED_PASSWORDS and not is_loopback(host):
            raise ValueError(
                f"the password for {host} is empty or one that everybody guesses: "
                "give the broker's user a password of its own, and the address that password"
            )
        return value

    def instance_name(self, service: str) -> str:
        """The configured instance name, or the service's with a short random tail."""
        return self.instance or f"{service}-{secrets.token_hex(2)}"


class LocalSettings(Settings):
    """What `evenload up` (`make run`) needs to know; variables `EVENLOAD_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    data_dir: Path = Field(Path(".evenload"), description="Where the local stack keeps ledger, broker data and logs.")
    cache_dir: Path | None = Field(
        None,
        description="Where unpacked packages are kept; by default `evenload` in the user's cache folder, or `cache` in "
        "the data folder of a user without a home.",
    )
    first_rush: bool = Field(True, description="0 starts the local stack without its first rush hour.")
    grid: NameOrPath = Field("default", description="Grid file (TOML), or the name of one that comes along.")
    gateway_port: Port = Field(8080, description="Port of the HTTP API.")
    prometheus: NameOrPath = Field(
        "auto",
        description="`auto`: an installed Prometheus, else a copy from the system's packages; or the path of a "
        "`prometheus`; or `0` for none.",
    )


class ConsoleSettings(Settings):
    """Who reads the broker's management console, where the local stack does not tell; `EVENLOAD_CONSOLE_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="EVENLOAD_CONSOLE_")

    user: str = Field("operator", description="Who asks the console of `--console`.")
    password: str = Field("", description="That user's password.")
    vhost: str = Field("evenload", description="The vhost that Evenload has there.")


AnySettings = TypeVar("AnySettings", bound=Settings)


def env_name(settings_type: type[BaseSettings], field: str) -> str:
    """The variable that sets `field`."""
    return f"{settings_type.model_config.get('env_prefix', '')}{field}".upper()


def env_names(settings_types: Iterable[type[Settings]]) -> list[str]:
    """All variables that the given settings classes read."""
    return [env_name(kind, field) for kind in settings_types for field in kind.model_fields]


def given(variable: str) -> str | None:
    """What is given for a variable: the text of the file that `<variable>_FILE` names, before the variable itself.

    The file wins, because whoever adds one to a compose file cannot take a variable away there. None where neither is
    set, or where an orchestrator wrote the variable for a service of its own. Raises `Misconfigured` for a file without
    a value, and never tells what it holds.
    """
    path = os.environ.get(variable + FILE_SUFFIX)
    if not path:
        value = os.environ.get(variable, "")
        return None if not value or is_service_link(variable, value) else value
    file = f"{variable}{FILE_SUFFIX}: {path}"
    if fault := path_fault(path):
        raise Misconfigured(f"{file}: {fault}")
    try:
        value = read_text(Path(path)).rstrip("\n")
    except OSError as error:
        raise Misconfigured(f"{file} cannot be read ({error.strerror}): name a file that this user may read") from None
    except ValueError as error:
        raise Misconfigured(f"{file} {error}") from None
    if not value:
        raise Misconfigured(f"{file} is empty: write the value into it, or unset {variable}{FILE_SUFFIX}")
    return value


def refuse_unknown(environ: Mapping[str, str], own: type[Settings] | None) -> None:
    """Refuse a variable with our prefix that nobody reads: it is a misspelling, and would do nothing.

    Variables of *other* services are let through, so that one environment can serve all of them; and so are those
    that an orchestrator writes.
    Raises `Misconfigured` with the nearest known name.
    """
    own_types: list[type[Settings]] = [CommonSettings, LocalSettings, ConsoleSettings]
    own_prefix = None
    if own is not None:
        own_types.append(own)
        own_prefix = own.model_config.get("env_prefix")
    known = _with_files(own_types)
    _refuse_lookalikes(environ, known)
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or is_service_link(name, environ[name]):
            continue
        if any(name.startswith(prefix) for prefix in _SERVICE_PREFIXES if prefix != own_prefix):
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "remove it"
        raise Misconfigured(f"{name} is no setting of Evenload: {hint}")


def _with_files(settings_types: Iterable[type[Settings]]) -> list[str]:
    return [name + suffix for name in env_names(settings_types) for suffix in ("", FILE_SUFFIX)]


def _refuse_lookalikes(environ: Mapping[str, str], known: Iterable[str]) -> None:
    """Refuse names of ours in small letters, or with signs that nobody sees, as at the beginning of a file."""
    for name in sorted(environ):
        meant = "".join(filter(str.isprintable, name)).strip().upper()
        if name not in known and meant in known:
            raise Misconfigured(f"{name} is no setting of Evenload: did you mean {meant}?")


def load(settings_type: type[AnySettings]) -> AnySettings:
    """Read one settings class from the environment; raises `Misconfigured` with one line per fault."""
    _refuse_lookalikes(os.environ, _with_files([settings_type]))
    try:
        return settings_type()
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            field = str(fault["loc"][0])
            name = env_name(settings_type, field)
            is_filed = bool(os.environ.get(name + FILE_SUFFIX))
            # An address may hold a password.
            is_secret = is_filed or field.endswith(("url", "password"))
            faults.append(f"{name}{FILE_SUFFIX if is_filed else ''}: {_say(dict(fault), is_secret=is_secret)}")
        raise Misconfigured("; ".join(faults)) from None


def _say(fault: dict[str, object], *, is_secret: bool) -> str:
    if fault["type"] == "missing":
        return "is not set, and has no default"
    text = str(fault["msg"]).removeprefix("Value error, ")
    words = f"{text[:1].lower()}{text[1:]}"
    return words if is_secret or "@" in str(fault["input"]) else f"{words} (got {str(fault['input'])[:80]!r})"


def load_for_service(own: type[AnySettings]) -> tuple[CommonSettings, AnySettings]:
    """The common settings and one service's own, after refusing names that nobody reads."""
    refuse_unknown(os.environ, own)
    return load(CommonSettings), load(own)
