"""Reading request bodies: bounded, decoded where compressed, parsed so that every value keeps its own bytes."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from .encodings import WINDOWS

if TYPE_CHECKING:
    from starlette.types import Receive

MAX_FORM_FIELDS = 1000
MAX_NAME_BYTES = 64
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class BodyTooLargeError(Exception):
    """The body exceeds `max_body_bytes`."""


class ClientLeftError(Exception):
    """The client went away before its request was complete."""


class UnreadableBodyError(ValueError):
    """The body cannot be read as what it claims to be; the message says why."""


class Parsed(NamedTuple):
    """A JSON body: its top level, each value in its own bytes (None if it is no object), and its length in UTF-8."""

    fields: dict[str, msgspec.Raw] | None
    size: int


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body. Raises BodyTooLargeError as soon as it passes `limit`, ClientLeftError on a disconnect."""
    body = bytearray()  # many tiny chunks in a list would take fifty times their bytes
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk: bytes = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise BodyTooLargeError
        if not message.get("more_body", False):
            return bytes(body) + chunk if body else bytes(chunk)
        body += chunk


def decoded(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body without its content encoding, at most `limit` bytes. Raises UnreadableBodyError, BodyTooLargeError.

    `deflate` needs its zlib header, as RFC 9110 has it: raw deflate can be made of bytes that are JSON as well, and an
    application that ignores the encoding would then read another request than the one that is metered.
    """
    name = b",".join(name for word in encoding.split(b",") if (name := word.strip().lower()) not in (b"", b"identity"))
    if not name:
        return body
    shown = name.decode("latin-1")[:40]
    window = WINDOWS.get(name)
    if window is None:
        raise UnreadableBodyError(f"content-encoding {shown!r} is not supported; send gzip, deflate or none")
    inflater = zlib.decompressobj(window)
    try:
        body = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise UnreadableBodyError(f"the body is not valid {shown}: {error}") from None
    if len(body) > limit:
        raise BodyTooLargeError
    if not inflater.eof:
        raise UnreadableBodyError(f"the {shown} body is cut off")
    if inflater.unused_data:
        raise UnreadableBodyError(f"the {shown} body goes on behind its end")
    return body


def parse_body(body: bytes) -> Parsed:
    """Read JSON. What the fast parser refuses is tried with `json.loads`, as applications do (UTF-16, BOM, NaN, lone
    surrogates). Raises UnreadableBodyError where that fails too.
    """
    try:
        return Parsed(_fields(body), len(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value: Any = json.loads(body)
        if not isinstance(value, dict):
            return Parsed(None, len(body))
        fields = {name: json.dumps(member).encode() for name, member in value.items()}
    except (ValueError, RecursionError) as error:
        raise UnreadableBodyError(f"the body is not valid JSON: {str(error)[:200]}") from None
    size = sum(len(json.dumps(name)) + len(member) + 2 for name, member in fields.items())
    return Parsed({name: msgspec.Raw(member) for name, member in fields.items()}, size)


def form_names(content_type: bytes, body: bytes) -> set[str] | None:
    """The names of a form's fields, and of a multipart one perhaps more than these; None for what is no form. Raises
    UnreadableBodyError for one with too many.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/x-www-form-urlencoded":
        try:
            pairs = parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
        except ValueError:
            raise UnreadableBodyError(f"the form has more than {MAX_FORM_FIELDS} fields") from None
        return {name for name, _ in pairs}
    if kind == b"multipart/form-data":
        pieces = body.split(b"name=", MAX_FORM_FIELDS)[1:]
        if len(pieces) == MAX_FORM_FIELDS:
            raise UnreadableBodyError(f"the form has more than {MAX_FORM_FIELDS} fields")
        heads = (piece[:MAX_NAME_BYTES].lstrip(b'"').replace(b'"', b"\r").replace(b";", b"\r") for piece in pieces)
        return {head.partition(b"\r")[0].decode("latin-1") for head in heads}
    return None
