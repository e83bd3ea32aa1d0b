"""Strict reading of request members, and writing them back with all others byte for byte as they came.

Members arrive as `msgspec.Raw`, the exact bytes of one value. `null` always means "not set". What an upstream would
have to guess (`"max_tokens": "lots"`, `true`, `5.0`, `1e3`) is refused here, because a guess that differs from ours
would make the bound wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from .base import InvalidRequestError
from .counts import as_text, is_text

MAX_MODEL_CHARS = 256
MAX_END_USER_CHARS = 256
MAX_OUTPUT_LIMIT = 1_000_000_000
"""Tokens. No model generates as much; larger numbers would only overflow what is computed from them."""
MAX_CHOICES = 10_000

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes it refuses. `UnicodeDecodeError` is not one of its own errors."""

_decode = msgspec.json.Decoder().decode
_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def decode_json(data: bytes | msgspec.Raw) -> Any:
    """Any JSON value. What msgspec refuses (NaN, lone surrogates, very long integers, control characters) gets a
    second reading by the standard library. Raises ValueError or RecursionError.
    """
    try:
        return _decode(data)
    except DECODE_ERRORS:
        return json.loads(bytes(data), strict=False)


def decode_object(data: bytes | msgspec.Raw) -> dict[str, Any] | None:
    """A JSON object, or None for anything else."""
    try:
        value = decode_json(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def decode_members(data: bytes, names: frozenset[str]) -> dict[str, Any] | None:
    """Some top-level members of a JSON object, decoded; None for what the fast parser refuses."""
    try:
        fields = _decode_object(data)
        return {name: _decode(fields[name]) for name in names if name in fields}
    except DECODE_ERRORS:
        return None


def is_set(fields: Mapping[str, msgspec.Raw], name: str) -> bool:
    """Whether a member is there and not `null`."""
    raw = fields.get(name)
    return raw is not None and bytes(raw) != b"null"


def read_value(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    """A member decoded; None where it is missing or `null`. Raises InvalidRequestError if it is nested too deeply."""
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decode_json(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name} cannot be read: {str(error)[:100]}") from error


def read_int(fields: Mapping[str, msgspec.Raw], name: str, *, minimum: int, maximum: int) -> int | None:
    """An integer member in a range; None where it is not set."""
    raw = fields.get(name)
    if raw is None:
        return None
    value = read_value(fields, name)
    if value is None:
        return None
    if type(value) is not int or not minimum <= value <= maximum:
        raise InvalidRequestError(f"{name} must be an integer from {minimum} to {maximum}, not {_shown(raw)}")
    return value


def read_bool(fields: Mapping[str, msgspec.Raw], name: str) -> bool:
    """A boolean member; False where it is not set."""
    raw = fields.get(name)
    if raw is None:
        return False
    value = bytes(raw)
    if value == b"true":
        return True
    if value in (b"false", b"null"):
        return False
    raise InvalidRequestError(f"{name} must be true or false, not {_shown(raw)}")


def read_model(fields: Mapping[str, msgspec.Raw]) -> str | None:
    """The `model` member; None where it is missing, `null` or empty."""
    raw = fields.get("model")
    if raw is None:
        return None
    value = read_value(fields, "model")
    if value is None or value == "":
        return None
    if type(value) is not str:
        raise InvalidRequestError(f"model must be a string, not {_shown(raw)}")
    return checked_model(value)


def checked_model(name: str) -> str:
    """A model's name as prices and ledgers take it. Raises InvalidRequestError."""
    if len(name) > MAX_MODEL_CHARS or "\0" in name or not is_text(name):
        raise InvalidRequestError(f"model must be at most {MAX_MODEL_CHARS} characters without NUL or lone surrogates")
    return name


def read_text(fields: Mapping[str, msgspec.Raw], name: str) -> str | None:
    """A string member that only informs us: None where it is missing, empty or of another type."""
    if name not in fields:
        return None
    value = read_value(fields, name)
    return value if type(value) is str and value else None


def as_end_user(value: object) -> str | None:
    """A user name as an identity takes it, or None."""
    return as_text(value.replace("\0", "")[:MAX_END_USER_CHARS]) or None if type(value) is str else None


def read_raw_object(fields: Mapping[str, msgspec.Raw], name: str) -> dict[str, msgspec.Raw]:
    """An object member, its own members as bytes; empty where it is not set. Of equal keys the last one wins."""
    raw = fields.get(name)
    if raw is None or bytes(raw) == b"null":
        return {}
    try:
        return _decode_object(raw)
    except DECODE_ERRORS:
        value = read_value(fields, name)
        if not isinstance(value, dict):
            raise InvalidRequestError(f"{name} must be an object, not {_shown(raw)}") from None
        return {key: msgspec.Raw(json.dumps(member).encode()) for key, member in value.items()}


def raw_value(value: object) -> msgspec.Raw:
    """The bytes of a value of ours."""
    return msgspec.Raw(_encode(value))


def encode_members(members: Mapping[str, msgspec.Raw]) -> bytes:
    """A JSON object of these members in their order, values byte for byte."""
    try:
        return _encode(members)
    except UnicodeEncodeError:  # a key with a lone surrogate, which only the standard library writes
        pairs = (json.dumps(key).encode() + b":" + bytes(value) for key, value in members.items())
        return b"{" + b",".join(pairs) + b"}"


def _shown(raw: msgspec.Raw) -> str:
    text = bytes(raw)[:40].decode(errors="replace")
    return text if len(text) < 40 else text + "..."
