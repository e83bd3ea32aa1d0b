"""Finding values deep inside a JSON object that is too large to collect, such as the counts of each item of a batch.

A push parser over any split of the bytes, like the scanner of top-level members: it looks only at quotes, backslashes,
brackets, colons and commas, skips what no wanted value can be in, does not validate and never raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MAX_VALUE_BYTES = 16_384
_MAX_KEY_BYTES = 128
_SPACE = b" \t\r\n"
_FLAT = frozenset((b"", b":", b",", b": ", b", ", b":null,"))
"""Frequent pieces between strings that open and close nothing."""
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
EACH = "*"
"""Stands in a path for every element of an array."""

Path = tuple[str, ...]


class Found(NamedTuple):
    """A value, the path that was wanted, and the number of the array's element it was found in: values of one element
    have one number, and no two elements the same.
    """

    path: Path
    value: bytes
    element: int


class PathScanner:
    """Collects the values at some paths of one JSON object, in the order they come: `("candidates", "*", "index")`.

    The last step of a path is a member's name. Values longer than `max_value_bytes` are left out.
    """

    def __init__(self, paths: Iterable[Path], max_value_bytes: int = MAX_VALUE_BYTES) -> None:
        self.found: list[Found] = []
        self.closed = False
        """The object has ended."""
        self._wanted = {tuple(step.encode() for step in path): path for path in paths}
        self._leading = {path[:steps] for path in self._wanted for steps in range(len(path))}
        self._max_value_bytes = max_value_bytes
        self._steps: tuple[bytes, ...] = ()  # for each open container that may hold a wanted value, where we are in it
        self._skipped = 0  # open containers inside of these that cannot
        self._in_string = False
        self._escaped = False  # the next byte of the string is escaped; only ever true between two pieces
        self._text: bytearray | None = None  # a string that may turn out to be a key
        self._key: bytes | None = None  # that string once it has ended, until a colon shows what it was
        self._element = 0
        self._value: bytearray | None = None  # the wanted value being collected
        self._nested = 0  # open containers inside of it

    def push(self, data: bytes) -> None:
        """Take the next bytes."""
        pieces = data.split(b'"')
        index = 0
        while index < len(pieces):
            if self._skipped and index:
                index = self._skip(pieces, index)
                continue
            if index:
                self._quote()
            piece = pieces[index]
            index += 1
            if not piece:
                continue
            if self._in_string:
                backslashes = len(piece) - len(piece.rstrip(b"\\"))
                carried = self._escaped and backslashes == len(piece)
                self._escaped = (backslashes + carried) % 2 == 1
                if self._value is not None:
                    self._collect(piece)
                elif self._text is not None:
                    self._text += piece
                    if len(self._text) > _MAX_KEY_BYTES:
                        self._text = None
            elif self._value is not None:
                self._value_piece(piece)
            elif self._key is not None:
                self._behind_key(piece)
            else:
                self._structure(piece)

    def _skip(self, pieces: list[bytes], index: int) -> int:
        """The same where nothing is wanted: most of a large answer."""
        skipped, in_string, escaped = self._skipped, self._in_string, self._escaped
        while skipped and index < len(pieces):
            piece = pieces[index]
            index += 1
            if escaped:
                escaped = False
            else:
                in_string = not in_string
            if in_string:
                if piece[-1:] == b"\\":
                    escaped = (len(piece) - len(piece.rstrip(b"\\"))) % 2 == 1
            elif piece not in _FLAT:
                self._skipped = skipped
                self._structure(piece)
                skipped = self._skipped
        self._skipped, self._in_string, self._escaped, self._key = skipped, in_string, escaped, None
        return index

    def _quote(self) -> None:
        if self._value is not None:
            self._collect(b'"')
        if self._escaped:
            self._escaped = False
            if self._text is not None:
                self._text += b'"'
        elif not self._in_string:
            self._in_string = True
            self._key = None
            looks = self._value is None and not self._skipped and self._steps and self._steps[-1] != b"*"
            self._text = bytearray() if looks else None
        else:
            self._in_string = False
            if self._text is not None:
                self._key = bytes(self._text)
                self._text = None

    def _behind_key(self, piece: bytes) -> None:
        rest = piece.lstrip(_SPACE)
        if not rest:
            return
        key, self._key = self._key, None
        if key is not None and rest[:1] == b":":
            self._steps = (*self._steps[:-1], key)
            if self._steps in self._wanted:
                self._value = bytearray()
                self._nested = 0
                self._value_piece(rest[1:])
                return
        self._structure(rest)

    def _structure(self, piece: bytes) -> None:
        """Containers that open and close where nothing is collected."""
        for byte in piece.translate(None, _NO_BRACKETS):
            if byte in b"{[":
                if self._skipped or self._steps not in self._leading:
                    self._skipped += 1
                elif not self.closed:
                    self._element += self._steps[-1:] == (b"*",)
                    self._steps = (*self._steps, b"*" if byte == 0x5B else b"")
            elif self._skipped:
                self._skipped -= 1
            else:
                self._steps = self._steps[:-1]
                self.closed = self.closed or not self._steps

    def _value_piece(self, piece: bytes) -> None:
        """Structure inside a wanted value: ends it where a container closes or a scalar meets `,` or `}`."""
        for place, byte in enumerate(piece):
            if byte in b"{[":
                self._nested += 1
            elif byte in b"}]":
                self._nested -= 1
                if self._nested <= 0:
                    end = place + 1 + self._nested  # the closing bracket is the value's own, or the object's
                    self._end(piece[:end])
                    self._structure(piece[end:])
                    return
            elif byte == 0x2C and not self._nested:
                self._end(piece[:place])
                self._structure(piece[place:])
                return
        self._collect(piece)

    def _collect(self, piece: bytes) -> None:
        if self._value is not None and len(self._value) <= self._max_value_bytes:
            self._value += piece

    def _end(self, piece: bytes) -> None:
        self._collect(piece)
        held = bytes(self._value or b"")
        value = held.strip(_SPACE)
        if value and len(held) <= self._max_value_bytes:  # what is longer was not collected to its end
            self.found.append(Found(self._wanted[self._steps], value, self._element))
        self._value = None
