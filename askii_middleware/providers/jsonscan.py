"""Finding the top-level members of a JSON object without parsing it: for objects that are too large to collect, and
for changes that must leave every other byte alone.

The scanner is a push parser over any split of the bytes. It looks only at quotes, backslashes, brackets, colons and
commas; the work between quotes is done by `bytes` methods, so its cost is per string, not per byte. It does not
validate: from malformed JSON it may report nothing or too little, and it never raises.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

MAX_VALUE_BYTES = 65_536
_MAX_KEY_BYTES = 128
_SPACE = b" \t\r\n"
_FLAT = frozenset((b"", b":", b",", b": ", b", ", b":null,"))
"""Frequent pieces between strings that open and close nothing."""
_decode_string = msgspec.json.Decoder(str).decode


class Member(NamedTuple):
    """A top-level member. `start` is the offset of its key's opening quote, `end` that behind its value."""

    key: str
    value: bytes
    start: int
    end: int


class TopLevelScanner:
    """Collects the members of one JSON object whose keys are in `wanted`, in the order they come.

    Values longer than `max_value_bytes` are left out; nothing else of the object is kept.
    """

    def __init__(self, wanted: frozenset[str], max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        self.members: list[Member] = []
        self.closed = False
        """The object has ended. What comes behind it is not looked at."""
        self._wanted = wanted
        self._max_value_bytes = max_value_bytes
        self._offset = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the next byte of the string is escaped; only ever true between two pieces
        self._text: bytearray | None = None  # a string at depth 1, which may turn out to be a key
        self._key: str | None = None  # that string once it has ended, until a colon shows what it was
        self._key_start = 0
        self._value: bytearray | None = None  # the wanted value being collected

    def push(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.closed:
            return
        pieces = data.split(b'"')
        index = 0
        while index < len(pieces):
            if self._depth > 1 and self._value is None and index:
                index = self._skip(pieces, index)
                if self.closed:
                    return
                continue
            if index:
                self._quote(self._offset)
                self._offset += 1
            piece = pieces[index]
            if piece:
                if self._in_string:
                    self._inside(piece)
                else:
                    self._outside(piece, self._offset)
                    if self.closed:
                        return
                self._offset += len(piece)
            index += 1

    def _skip(self, pieces: list[bytes], index: int) -> int:
        """The same for what lies deeper than the top level, where nothing is collected: most of a large answer."""
        depth, in_string, escaped, offset = self._depth, self._in_string, self._escaped, self._offset
        while index < len(pieces) and depth > 1:
            piece = pieces[index]
            if escaped:
                escaped = False
            else:
                in_string = not in_string
            offset += 1 + len(piece)
            index += 1
            if in_string:
                if piece[-1:] == b"\\":
                    escaped = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
            elif piece not in _FLAT:
                depth = self._after(piece, depth)
        self._depth, self._in_string, self._escaped, self._offset = depth, in_string, escaped, offset
        return index

    def _quote(self, offset: int) -> None:
        if self._value is not None:
            self._collect(b'"')
        if not self._in_string:
            self._in_string = True
            if self._depth == 1 and self._value is None:
                self._text = bytearray()
                self._key_start = offset
            return
        if self._escaped:
            self._escaped = False
            if self._text is not None:
                self._text += b'"'
            return
        self._in_string = False
        if self._text is not None:
            self._key = _unescape(bytes(self._text))
            self._text = None

    def _inside(self, piece: bytes) -> None:
        backslashes = len(piece) - len(piece.rstrip(b"\\"))
        carried = self._escaped and backslashes == len(piece)
        self._escaped = (backslashes + carried) % 2 == 1
        if self._value is not None:
            self._collect(piece)
        elif self._text is not None:
            self._text += piece
            if len(self._text) > _MAX_KEY_BYTES:
                self._text = None

    def _outside(self, piece: bytes, offset: int) -> None:
        if self._value is not None:
            self._value_piece(piece, offset)
            return
        if self._key is not None:
            rest = piece.lstrip(_SPACE)
            if not rest:
                return
            key, self._key = self._key, None
            if rest[:1] == b":" and key in self._wanted:
                self._value = bytearray()
                self._name = key
                self._value_piece(rest[1:], offset + len(piece) - len(rest) + 1)
                return
        self._nest(piece)

    def _value_piece(self, piece: bytes, offset: int) -> None:
        """Structure inside a wanted value: ends it where a container closes or a scalar meets `,` or `}`."""
        depth = self._depth
        for index, byte in enumerate(piece):
            if byte in b"{[":
                depth += 1
            elif byte in b"}]":
                depth -= 1
                if depth <= 1:
                    end = index + depth  # the closing bracket is the container's own, or the object's
                    self._finish_value(piece[:end], offset + end)
                    self._nest(piece[end:])
                    return
            elif byte == 0x2C and depth == 1:
                self._finish_value(piece[:index], offset + index)
                self._nest(piece[index:])
                return
        self._collect(piece)
        self._depth = depth

    def _finish_value(self, piece: bytes, end: int) -> None:
        self._collect(piece)
        if self._value is not None:
            value = bytes(self._value).strip(_SPACE)
            if value:
                # Space between a scalar and what follows it belongs to neither; the span ends with the value.
                trailing = len(self._value) - len(bytes(self._value).rstrip(_SPACE))
                self.members.append(Member(self._name, value, self._key_start, end - trailing))
            self._value = None
        self._depth = 1

    def _collect(self, piece: bytes) -> None:
        if self._value is not None:
            self._value += piece
            if len(self._value) > self._max_value_bytes:
                self._value = None

    def _nest(self, piece: bytes) -> None:
        self._depth = self._after(piece, self._depth)

    def _after(self, piece: bytes, depth: int) -> int:
        """The depth behind a piece of structure; 0 if the object ends in it."""
        closing = piece.count(b"}") + piece.count(b"]")
        if not closing or closing < depth:
            return depth + piece.count(b"{") + piece.count(b"[") - closing
        for byte in piece:
            if byte in b"{[":
                depth += 1
            elif byte in b"}]":
                depth -= 1
                if depth <= 0:
                    self.closed = True
                    return 0
        return depth


def without_members(data: bytes, key: str) -> bytes:
    """A JSON object without its top-level members of this name; every other byte stays as it is. With a member goes
    the comma that separates it from the one before it, or, for the first one, from the one after it.
    """
    scanner = TopLevelScanner(frozenset((key,)), max_value_bytes=len(data))
    scanner.push(data)
    for member in reversed(scanner.members):
        before = data[: member.start].rstrip(_SPACE)
        after = data[member.end :]
        if before.endswith(b","):
            data = before[:-1] + after
        else:
            rest = after.lstrip(_SPACE)
            data = data[: member.start] + (rest[1:].lstrip(_SPACE) if rest.startswith(b",") else after)
    return data


def _unescape(key: bytes) -> str | None:
    try:
        return _decode_string(b'"' + key + b'"') if b"\\" in key else key.decode()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
