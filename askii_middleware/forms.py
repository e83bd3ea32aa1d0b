"""Multipart forms, read strictly: what is metered here must be what every server behind reads.

Servers take forms leniently and each in its own way: some accept bare line feeds, some decode transfer encodings, some
take the first of two parts with one name and some the last. So of everything that two of them could read differently
nothing is accepted: preambles, delimiters inside a part, repeated or folded headers, quoting with backslashes,
extended names (`name*=`), parts that lie about their length. What the clients' own encoders write passes: httpx,
requests, curl, browsers, Node's, .NET's, OkHttp's. Sources: RFC 7578, RFC 2046 section 5.1.1, and the WHATWG's HTML
standard on multipart/form-data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from .body import MAX_FORM_FIELDS, UnreadableBodyError
from .errors import MissingExtraError

MAX_BOUNDARY_BYTES = 70
MAX_NAME_CHARS = 128
MAX_DIGITS = 15
"""Longer numbers stay text, as which no API takes them."""

BOUNDING = frozenset(
    (
        *("model", "n", "stream", "stream_format", "stream_options", "prompt", "input", "size", "quality"),
        *("partial_images", "frame_count", "output_format", "response_format", "input_fidelity", "service_tier"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "speed", "background", "svg", "svg[model]"),
        *("file_url", "file_id", "url", "messages", "tools", "best_of"),
    )
)
"""Text members that say what a call costs: each has one value, under its plain name, in UTF-8."""
_BOUNDARY = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'()+_,-./:=? ")
_TOKEN = frozenset("!#$&+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_PLAIN_ENCODINGS = ("7bit", "8bit", "binary")
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


class _Part(NamedTuple):
    name: str
    """Without brackets that only say that there may be several."""
    file: bool
    several: bool
    """Its name ends in brackets: the parts of one name are a list."""
    start: int
    end: int
    """Where its content stands in the body."""
    length: tuple[int, int] | None
    """Where its own content-length stands, if it has one."""


class _Head:
    """The headers of the part that is being read."""

    __slots__ = ("end", "fields", "spans")

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        self.end = 0


class Form:
    """A form, and where its parts stand.

    Attributes:
        fields: its members as JSON: `true`, `false` and whole numbers as such, other text as strings; a file as
            `{"file_bytes": n}`, several under one name as `{"file_bytes": sum, "files": k}`. Names with empty or
            numbered brackets (`image[]`, `image[0]`) count under the name before them, their texts as a list.
    """

    def __init__(self, body: bytes, boundary: bytes, parts: list[_Part]) -> None:
        self._body = body
        self._boundary = boundary
        self._parts = parts
        self.fields: dict[str, msgspec.Raw] = dict(_members(body, parts))

    def replace(self, name: str, value: str) -> bytes:
        """The body with the text of one member changed, or with the member added at its end; all other bytes as they
        came. Raises ValueError for what a form cannot hold.
        """
        data = value.encode()
        if b"--" + self._boundary in data:
            raise ValueError("the value contains the form's boundary")
        if not set(name) <= _TOKEN:
            raise ValueError(f"{name!r} is no name of a form's member")
        parts = [part for part in self._parts if part.name == name and not part.file]
        out, at = [], 0
        for part in parts:
            if part.length is not None:
                start, end = part.length
                out += [self._body[at:start], b"%d" % len(data)]
                at = end
            out += [self._body[at : part.start], data]
            at = part.end
        if not parts:
            delimiter = b"--" + self._boundary
            at = self._body.rfind(delimiter + b"--")
            head = b'\r\nContent-Disposition: form-data; name="%s"\r\n\r\n' % name.encode()
            out = [self._body[:at], delimiter, head, data, b"\r\n"]
        return b"".join([*out, self._body[at:]])


def read_form(content_type: bytes, body: bytes) -> Form:
    """Read a whole form. Raises UnreadableBodyError for one that is broken, cut off, has too many parts, or that
    servers could read in different ways; MissingExtraError without the extra `forms`.
    """
    boundary = _boundary(content_type)
    parts = _parse(body, boundary)
    delimiter = b"--" + boundary
    head, _, rest = body.partition(delimiter)
    tail = rest.rpartition(delimiter + b"--")[2] if parts else rest.removeprefix(b"--")
    if head.strip(b"\r\n") or tail.strip(b"\r\n"):
        raise UnreadableBodyError("the form has text before its first or behind its last part")
    if body.count(delimiter) != len(parts) + 1 or body.count(delimiter + b"\r\n") != len(parts):
        raise UnreadableBodyError("the form has its boundary inside a part, or something behind a boundary")
    return Form(body, boundary, parts)


def _boundary(content_type: bytes) -> bytes:
    kind, _, rest = content_type.decode("latin-1").partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise UnreadableBodyError("a form must be multipart/form-data")
    boundary = _parameters(";" + rest, "content-type").get("boundary", "").encode("latin-1")
    if not 0 < len(boundary) <= MAX_BOUNDARY_BYTES or not set(boundary) <= _BOUNDARY or boundary.endswith(b" "):
        raise UnreadableBodyError("the form's content-type names no usable boundary")
    return boundary


def _parse(body: bytes, boundary: bytes) -> list[_Part]:
    try:
        from python_multipart.exceptions import FormParserError  # noqa: PLC0415 - an extra, needed by few
        from python_multipart.multipart import MultipartParser  # noqa: PLC0415 - as above
    except ImportError:
        raise MissingExtraError("forms", "reading multipart forms") from None
    parts: list[_Part] = []
    head = _Head()
    data_end = 0
    field = ""
    ended = False

    def part_begin() -> None:
        nonlocal head, data_end
        if len(parts) >= MAX_FORM_FIELDS:
            raise UnreadableBodyError(f"the form has more than {MAX_FORM_FIELDS} fields")
        head, data_end = _Head(), 0

    def header_field(data: bytes, start: int, end: int) -> None:
        nonlocal field
        field = data[start:end].decode("latin-1").lower()

    def header_value(data: bytes, start: int, end: int) -> None:
        value = data[start:end]
        if field in head.fields or any(byte < 0x20 and byte != 0x09 for byte in value):
            raise UnreadableBodyError(f"a part of the form repeats or breaks its header {field[:40]!r}")
        head.fields[field] = _text(value, "a header").strip(" \t")
        head.spans[field] = start, end
        head.end = end

    def part_data(_data: bytes, _start: int, end: int) -> None:
        nonlocal data_end
        data_end = end

    def part_end() -> None:
        start = head.end + 4
        if body[head.end : start] != b"\r\n\r\n":
            raise UnreadableBodyError("a part of the form has no headers")
        parts.append(_part(body, head, start, max(data_end, start)))

    def end() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": part_begin,
            "on_header_field": header_field,
            "on_header_value": header_value,
            "on_part_data": part_data,
            "on_part_end": part_end,
            "on_end": end,
        },
    )
    try:
        parser.write(body)
    except FormParserError as error:
        raise UnreadableBodyError(f"the form is broken: {str(error)[:200]}") from None
    if not ended:
        raise UnreadableBodyError("the form is cut off")
    return parts


def _part(body: bytes, head: _Head, start: int, end: int) -> _Part:
    disposition, _, rest = head.fields.get("content-disposition", "").partition(";")
    if disposition.strip().lower() != "form-data":
        raise UnreadableBodyError("a part of the form has no content-disposition of form-data")
    options = _parameters(";" + rest, "content-disposition")
    if next(iter(options), "") != "name" or not options.keys() <= {"name", "filename", "filename*"}:
        raise UnreadableBodyError("a part of the form does not begin its content-disposition with its name")
    if any("name=" in value.lower() for value in options.values()):
        raise UnreadableBodyError("a part of the form has 'name=' in its name or file name")
    encoding = head.fields.get("content-transfer-encoding", "binary").lower()
    length = head.fields.get("content-length")
    if encoding not in _PLAIN_ENCODINGS or (length is not None and length != str(end - start)):
        raise UnreadableBodyError("a part of the form is encoded, or is not as long as it says")
    name, several = _name(options["name"])
    kind, _, rest = head.fields.get("content-type", "").partition(";")
    kind = kind.strip().lower()
    file = "filename" in options or "filename*" in options or kind == "application/octet-stream"
    if name in BOUNDING or name == "_charset_":
        if file or several or kind not in ("", "text/plain"):
            raise UnreadableBodyError(f"send the form's field {name!r} once, as plain text")
        if name == "_charset_" and _text(body[start:end], name).lower() not in _CHARSETS:
            raise UnreadableBodyError("send the form in UTF-8")
    if not file and _parameters(";" + rest, "content-type").get("charset", "utf-8").lower() not in _CHARSETS:
        raise UnreadableBodyError(f"send the form's field {name!r} in UTF-8")
    return _Part(name, file, several, start, end, head.spans.get("content-length"))


def _name(name: str) -> tuple[str, bool]:
    """A name without brackets that only say that there may be several, and whether it had any. Refuses what a server
    could take for a member that bounds the call though it is spelled otherwise.
    """
    head, bracket, inner = name.partition("[")
    several = bool(bracket) and (inner == "]" or (inner.endswith("]") and inner[:-1].isdecimal()))
    if several:
        name = head
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable() or " " in name or "%" in name:
        raise UnreadableBodyError(f"the form's field {name[:40]!r} has an unusable name")
    plain = name.casefold()
    if plain != name and plain in BOUNDING:
        raise UnreadableBodyError(f"write the form's field {name[:40]!r} as {plain!r}")
    return name, several


def _parameters(text: str, header: str) -> dict[str, str]:
    """`; key=value; key="value"`: each key once, in lower case, and no quoting within quotes."""
    found: dict[str, str] = {}
    while text.strip(" \t;"):
        key, equals, rest = text[1:].partition("=")
        key = key.strip(" \t")
        if rest.startswith('"'):
            value, closing, text = rest[1:].partition('"')
            good = bool(closing) and "\\" not in value
        else:
            value, semicolon, rest = rest.partition(";")
            value, text = value.rstrip(" \t"), semicolon + rest
            good = '"' not in value and "\\" not in value
        text = text.lstrip(" \t")
        if not equals or not good or key in found or not key or key != key.lower() or (text and text[0] != ";"):
            raise UnreadableBodyError(f"the form has a {header} that cannot be read for certain")
        found[key] = value
    return found


def _members(body: bytes, parts: list[_Part]) -> Iterator[tuple[str, msgspec.Raw]]:
    named: dict[str, list[_Part]] = {}
    for part in parts:
        named.setdefault(part.name, []).append(part)
    for name, same in named.items():
        files = sum(part.file for part in same)
        if files == len(same):
            size = sum(part.end - part.start for part in same)
            member: Mapping[str, int] = {"file_bytes": size, "files": files} if files > 1 else {"file_bytes": size}
            yield name, msgspec.Raw(msgspec.json.encode(member))
            continue
        if files:
            raise UnreadableBodyError(f"the form's field {name!r} is sent both as a text and as a file")
        values = [_value(_text(body[part.start : part.end], name)) for part in same]
        if name in BOUNDING and len(set(values)) > 1:
            raise UnreadableBodyError(f"the form's field {name!r} has two different values")
        listed = same[0].several or len(set(values)) > 1
        yield name, msgspec.Raw(b"[" + b",".join(values) + b"]" if listed else values[0])


def _value(text: str) -> bytes:
    """A text as JSON."""
    if text in ("true", "false"):
        return text.encode()
    digits = text.removeprefix("-")
    whole = digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS
    if whole and (digits == "0" or digits[0] != "0") and text != "-0":
        return text.encode()
    encoded: Any = msgspec.json.encode(text)
    return bytes(encoded)


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UnreadableBodyError(f"the form has something that is not UTF-8 in {where[:40]!r}") from None
