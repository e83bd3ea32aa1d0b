"""Reading a request: bounded in size and time, and strict about what it says."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from math import isinf
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from ..identity import Identity
from ..log_fields import shown
from .operation import NoBody, Query
from .problems import ProblemError, invalid, invalid_fields, not_found

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

BODY_S: Final = 10.0
MAX_PARAMETERS: Final = 50
_CLOSE: Final = {"connection": "close"}

Q = TypeVar("Q", bound=Query)
B = TypeVar("B", bound=BaseModel)


class LeftError(Exception):
    """The client is gone."""


def read_path(scope: Scope) -> Mapping[str, str]:
    """The ids in the path. 404 for those that nothing can have."""
    found: dict[str, str] = scope.get("path_params", {})
    for value in found.values():
        try:
            Identity(tenant=value)
        except ValueError:
            raise not_found() from None
    return found


def read_query(scope: Scope, model: type[Q]) -> Q:
    """What stands behind the `?`, each name once. Raises ProblemError."""
    try:
        pairs = parse_qsl(
            scope.get("query_string", b"").decode("ascii"),
            keep_blank_values=True,
            max_num_fields=MAX_PARAMETERS,
            errors="strict",
        )
    except ValueError:  # neither ASCII nor UTF-8 in percent-encoding, or far too many
        raise invalid("query", "cannot be read") from None
    given = _once(pairs)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid_fields(error) from None


async def read_body(scope: Scope, receive: Receive, model: type[B], max_bytes: int, within_s: float) -> B:
    """The JSON body; nothing at all stands for one without fields. Raises ProblemError, LeftError."""
    if issubclass(model, NoBody):
        return model()
    try:
        async with asyncio.timeout(within_s):
            body = await _collect(scope, receive, max_bytes)
    except TimeoutError:
        raise ProblemError(408, "too_slow", "the body did not arrive in time", headers=_CLOSE) from None
    if body:
        _check_type(scope)
    try:
        # Values that are no JSON, such as NaN, must not hide in fields that take anything.
        from_json(body or b"{}", allow_inf_nan=False)
        # Readers differ in which of two values counts.
        json.loads(body or b"{}", object_pairs_hook=_once, parse_float=_finite)
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise invalid_fields(error) from None
    except ValueError:
        raise invalid("body", "is not JSON") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A query, or one object of a body: each name once. Raises ProblemError."""
    given = dict(pairs)
    if len(given) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise invalid(shown(name), "was given twice")
    return given


def _finite(digits: str) -> float:
    """A number of a body. Raises ProblemError for one that would be read as infinite."""
    number = float(digits)
    if isinf(number):
        raise invalid("body", "has a number that is too large")
    return number


def _check_type(scope: Scope) -> None:
    given = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
    if [value.partition(b";")[0].strip().lower() for value in given] != [b"application/json"]:
        raise ProblemError(415, "unsupported_media_type", "send the body as application/json")


async def _collect(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    for name, value in scope["headers"]:
        if name.lower() == b"content-length" and value.isdigit() and int(value[:20]) > max_bytes:
            raise _too_large(max_bytes)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise LeftError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> ProblemError:
    return ProblemError(413, "too_large", f"the body has more than {max_bytes} bytes", headers=_CLOSE)
