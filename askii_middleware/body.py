"""Reading request bodies: bounded, decoded where compressed, parsed so that every value keeps its own bytes."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from starlette.types import Message, Receive

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ZLIB_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


class BodyTooLargeError(Exception):
    """The body exceeds `max_body_bytes`."""


class ClientLeftError(Exception):
    """The client went away before its request was complete."""


class UnreadableBodyError(ValueError):
    """The body cannot be read as what it claims to be; the message says why."""


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body. Raises BodyTooLargeError as soon as it passes `limit`, ClientLeftError on a disconnect."""
    message: Message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientLeftError
    first: bytes = message.get("body", b"")
    if len(first) > limit:
        raise BodyTooLargeError
    if not message.get("more_body", False):
        return first
    chunks, size = [first], len(first)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLargeError
        chunks.append(chunk)
    return b"".join(chunks)


def decoded(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body without its content encoding, at most `limit` bytes. Raises UnreadableBodyError, BodyTooLargeError."""
    names = [name.strip().lower() for name in encoding.split(b",") if name.strip()]
    for name in reversed(names):
        if name == b"identity":
            continue
        window = _ZLIB_WINDOW.get(name)
        if window is None:
            raise UnreadableBodyError(
                f"content-encoding {name.decode('latin-1')[:40]!r} is not supported; send gzip, deflate or none"
            )
        inflater = zlib.decompressobj(window)
        try:
            body = inflater.decompress(body, limit + 1)
        except zlib.error as error:
            raise UnreadableBodyError(f"the body is not valid {name.decode()}: {error}") from None
        if len(body) > limit:
            raise BodyTooLargeError
        if not inflater.eof:
            raise UnreadableBodyError(f"the {name.decode()} body is cut off")
    return body


def parse_object(body: bytes) -> dict[str, msgspec.Raw] | None:
    """The top level of a JSON object, each value in its own bytes; None for JSON that is no object.

    What the fast parser refuses is tried with `json.loads`, as applications do (UTF-16, BOM, NaN, lone surrogates).
    Raises UnreadableBodyError where that fails too.
    """
    try:
        return _fields(body)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value: Any = json.loads(body)
        if not isinstance(value, dict):
            return None
        return {name: msgspec.Raw(json.dumps(member).encode()) for name, member in value.items()}
    except (ValueError, RecursionError) as error:
        raise UnreadableBodyError(f"the body is not valid JSON: {str(error)[:200]}") from None
