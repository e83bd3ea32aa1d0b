"""Token counts out of answers that may say anything: absent, null, negative, fractional, absurd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_COUNT = 1_000_000_000
"""Tokens. A larger count in one answer is a defect of the provider and is taken as not reported."""

GARBAGE = -1
"""Stands for a part that was reported as something that is no count: `TokenUsage.from_totals` makes it 0 and flags
the usage as anomalous.
"""


def count(value: object) -> int | None:
    """A reported number as a whole count, negative ones included; None for what is not a usable number."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and -MAX_COUNT <= value <= MAX_COUNT else None


def total(source: Mapping[str, Any], *names: str) -> int | None:
    """The first of these members that holds a count; None if none does."""
    for name in names:
        found = count(source.get(name))
        if found is not None:
            return found
    return None


def part(source: Mapping[str, Any], *names: str) -> int:
    """The largest of these members: several names for one part of a total. 0 where none is reported."""
    found = 0
    for name in names:
        value = source.get(name)
        if value is not None:
            counted = count(value)
            if counted is None or counted < 0:
                return GARBAGE
            found = max(found, counted)
    return found


def member(source: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The first of these members that is an object; an empty one if none is."""
    for name in names:
        value = source.get(name)
        if isinstance(value, dict):
            return value
    return {}


def text(source: Mapping[str, Any], name: str) -> str | None:
    """A string member with something in it, cut to 256 characters: names and ids are never longer. What SDKs make an
    enumeration of is a string as well.
    """
    value = source.get(name)
    return as_text(value[:256]) if isinstance(value, str) and value else None


def is_text(value: str) -> bool:
    """Whether a string can be written at all: JSON may escape halves of characters, which UTF-8 does not have."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_text(value: str) -> str:
    """A string that can be written: each lone surrogate in it becomes a question mark."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def text_bytes(value: object, depth: int = 4) -> int:
    """UTF-8 bytes of a generated piece: a string, or a list of parts with `text` or `thinking` in them."""
    if type(value) is str:
        return len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
    if depth and isinstance(value, list):
        return sum(text_bytes(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return text_bytes(value.get("text"), depth - 1) + text_bytes(value.get("thinking"), depth - 1)
    return 0
