"""The tables under `[sinks]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, PlainValidator, ValidationError, model_validator

from .settings_tables import (
    Count,
    HookUrl,
    LagoSettings,
    Number,
    RequestSeconds,
    Seconds,
    Secret,
    Table,
    Text,
    problems,
)


class LogSettings(Table):
    """`[sinks.log]`: usage records as JSON lines. A file that would grow beyond `rotate_bytes` becomes `<path>.1`."""

    path: Path
    rotate_bytes: Count | None = None
    keep: Annotated[int, Number, Field(ge=1, le=1000)] = 10
    fsync: bool = False


class WebhookSettings(Table):
    """`[sinks.webhook]`: usage records as CloudEvents. With several `secrets` each signs; the new one comes first."""

    url: HookUrl
    secrets: tuple[Secret, ...] = ()
    """`whsec_…`; none: not signed."""
    token: Secret | None = None
    """Sent as `Authorization: Bearer`."""
    type: Text = "askii.usage"
    source: Text = "askii-middleware"
    number_format: Literal["string", "integer"] = "integer"
    max_batch: Annotated[int, Number, Field(ge=1, le=200)] = 100
    max_age_s: Seconds | None = None
    remembers_s: Seconds | None = None
    allow_http: bool = False
    timeout_s: RequestSeconds = 10.0


SinkTable = LagoSettings | LogSettings | WebhookSettings
KINDS: Final[dict[str, type[SinkTable]]] = {"lago": LagoSettings, "log": LogSettings, "webhook": WebhookSettings}


def lago_names(name: str, table: LagoSettings) -> dict[Literal["coins", "tokens"], str]:
    """Shapes of events, and the name of the sink that sends each."""
    return {shape: name if shape == "coins" else f"{name}-{shape}" for shape in table.events}


def _named(value: object) -> SinkTable:
    if isinstance(value, SinkTable):
        return value
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown sink: under a name of its own it needs kind = one of {', '.join(KINDS)}")
    try:
        return KINDS[kind].model_validate({name: each for name, each in value.items() if name != "kind"})
    except ValidationError as error:
        raise ValueError("; ".join(problems(error))) from None


class SinkSettings(Table):
    """`[sinks]`: a table each, under the name of its kind, or under any name with `kind`. The name is the sink's place
    in the outbox: under another it begins anew.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[
        Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")],
        Annotated[Any, PlainValidator(_named)],
    ] = Field(init=False)

    lago: LagoSettings | None = None
    log: LogSettings | None = None
    webhook: WebhookSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _kind_of_its_name(cls, tables: object) -> object:
        """`kind` may be said where the name says it already."""
        if not isinstance(tables, Mapping):
            return tables
        said = {}
        for name, table in tables.items():
            kind = table.get("kind") if name in KINDS and isinstance(table, Mapping) else None
            if kind not in (None, name):
                raise ValueError(f"{name}.kind: what has this name is of this kind; take another name")
            drop = kind is not None
            said[name] = {key: each for key, each in table.items() if key != "kind"} if drop else table
        return said

    @property
    def tables(self) -> Iterator[tuple[str, SinkTable]]:
        """Every sink's name and settings, in a fixed order."""
        for name in KINDS:
            table = getattr(self, name)
            if table is not None:
                yield name, table
        yield from (self.__pydantic_extra__ or {}).items()

    @property
    def places(self) -> frozenset[str]:
        """The names under which these sinks have their places in the outbox."""
        found: set[str] = set()
        for name, table in self.tables:
            found.update(lago_names(name, table).values() if isinstance(table, LagoSettings) else (name,))
        return frozenset(found)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.tables)
