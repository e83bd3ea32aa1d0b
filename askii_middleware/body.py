"""Reading request bodies: bounded, decoded where compressed, parsed so that every value keeps its own bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from .encodings import PIECE_BYTES, BadEncodingError, Unpacker, codings, is_known, unpacker
from .errors import MissingExtraError

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

    What is read here has to be what the application reads. So there is one encoding and one member of it, and nothing
    behind: decoders differ in what they make of more. `deflate` needs its zlib header, as RFC 9110 has it: raw deflate
    can be made of bytes that are JSON as well, and an application that ignores the encoding would then read another
    request than the one that is metered. br, which has no header at all, is read only where its bytes are no JSON.
    """
    names = codings(encoding)
    if not names:
        return body
    shown = b", ".join(names).decode("latin-1")[:40]
    if len(names) > 1:
        raise UnreadableBodyError(f"content-encoding {shown!r} is not supported: send one encoding, or none")
    name = names[0]
    if not is_known(name):
        raise UnreadableBodyError(f"content-encoding {shown!r} is not supported; send gzip, deflate, br, zstd or none")
    try:
        unpack = unpacker(name)
    except MissingExtraError as error:
        raise UnreadableBodyError(f"content-encoding {shown!r} is not supported here: {error}") from None
    plain = _unpacked(unpack, body, shown, limit)
    if name == b"br" and _is_json(body):
        raise UnreadableBodyError("the body is JSON as it stands: send it without content-encoding")
    return plain


def _unpacked(unpack: Unpacker, body: bytes, shown: str, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        for start in range(0, len(body), PIECE_BYTES):
            if unpack.eof:
                raise UnreadableBodyError(f"the {shown} body goes on behind its end")
            for piece in unpack.pieces(body[start : start + PIECE_BYTES]):
                size += len(piece)
                if size > limit:
                    raise BodyTooLargeError
                pieces.append(piece)
    except BadEncodingError as error:
        raise UnreadableBodyError(f"the body is not valid {shown}: {error}") from None
    if not unpack.eof:
        raise UnreadableBodyError(f"the {shown} body is cut off")
    if unpack.rest:
        raise UnreadableBodyError(f"the {shown} body goes on behind its end")
    return b"".join(pieces)


def _is_json(body: bytes) -> bool:
    try:
        parse_body(body)
    except UnreadableBodyError:
        return False
    return True


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
