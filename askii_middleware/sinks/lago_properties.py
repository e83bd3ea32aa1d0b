"""Further properties of events, to filter and group by in Lago: constants, and fields of the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from askii_middleware.errors import SinkError
from askii_middleware.identity import MAX_VALUE_CHARS
from askii_middleware.records import UsageCounts, UsageRecord

MAX_PROPERTIES: Final = 20
MAX_NAME_CHARS: Final = 64
FIELDS: Final = frozenset(UsageRecord.__struct_fields__) - {
    *("metadata", "usage", "charges", "duration_ms", "exchange_rate")
}
"""Those whose values are texts, whole numbers, truths or, as with tags, several texts."""

_Get = Callable[[UsageRecord], Any]


class Properties:
    """Reads `{"env": "prod", "team": "{team}", "project": "{metadata.project}"}`: a value in braces names a field of
    the record, every other is a constant. What a record does not have is left out; longer texts are cut to 256
    characters, and NUL, which breaks a batch in Lago, becomes U+FFFD. All values are texts.

    Raises SinkError for names and fields that cannot be.
    """

    def __init__(self, table: Mapping[str, str], *, reserved: frozenset[str] = frozenset()) -> None:
        if len(table) > MAX_PROPERTIES:
            raise SinkError(f"properties: at most {MAX_PROPERTIES}, not {len(table)}")
        self._constants: dict[str, str] = {}
        self._fields: list[tuple[str, _Get]] = []
        for name, value in table.items():
            if not 1 <= len(name) <= MAX_NAME_CHARS or "\0" in name:
                raise SinkError(f"properties: {name[:80]!r} is no name of 1 to {MAX_NAME_CHARS} characters without NUL")
            if name in reserved:
                raise SinkError(f"properties: {name} is the event's own; choose another name")
            if value.startswith("{") and value.endswith("}"):
                self._fields.append((name, _getter(name, value[1:-1])))
            elif len(value) > MAX_VALUE_CHARS or "\0" in value or "{" in value:
                raise SinkError(
                    f"properties: {name} must be a text of at most {MAX_VALUE_CHARS} characters without NUL and braces,"
                    ' or one field as in "{team}"'
                )
            else:
                self._constants[name] = value

    def of(self, record: UsageRecord) -> dict[str, str]:
        found = dict(self._constants)
        for name, get in self._fields:
            text = _text(get(record))
            if text:
                found[name] = text
        return found


def _getter(name: str, field: str) -> _Get:
    head, dot, tail = field.partition(".")
    if not dot and head in FIELDS:
        return lambda record: getattr(record, head)
    if head == "metadata" and tail:
        return lambda record: record.metadata.get(tail)
    if head == "usage" and tail in UsageCounts.__struct_fields__:
        return lambda record: getattr(record.usage, tail)
    raise SinkError(
        f"properties: {name} names {field[:80]!r}; known are {', '.join(sorted(FIELDS))}, metadata.NAME and usage.COUNT"
    )


def _text(value: Any) -> str:
    """A value as Lago groups by it, empty for what has no plain text."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, int):
        text = str(value)
    elif isinstance(value, float):
        # Without an exponent, which Lago does not read as a number.
        text = format(Decimal(repr(value)), "f")
    elif isinstance(value, tuple):
        text = ",".join(value)
    else:
        text = ""
    return text[:MAX_VALUE_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")
