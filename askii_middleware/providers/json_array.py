"""JSON arrays as they pass: the elements of one top-level array, framed by push.

Like the scanner of objects this looks only at quotes, backslashes, brackets and commas, in pieces between quotes, and
does not validate: malformed JSON gives too little or elements that no parser takes, and never raises.
"""

from __future__ import annotations

MAX_ELEMENT_BYTES = 16_777_216
"""An element with an image, and its usage behind that, has some megabytes."""
_SPACE = b" \t\r\n"


class ArrayFramer:
    """Splits an array into its elements. Holds one unfinished element at most, and of that at most
    `max_element_bytes`: a longer one is left out.
    """

    def __init__(self, max_element_bytes: int = MAX_ELEMENT_BYTES) -> None:
        self.closed = False
        """The array has ended."""
        self.separator = b"["
        """What has to stand before another element."""
        self._max_element_bytes = max_element_bytes
        self._held = bytearray()  # what earlier pushes brought of the unfinished element
        self._passing = False  # inside an element that is too long
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the next byte of the string is escaped; only ever true between two pieces

    @property
    def unfinished(self) -> int:
        """Bytes of the unfinished element, without the space before it; 0 inside one that is too long."""
        return len(self._held.lstrip(_SPACE))

    def push(self, chunk: bytes) -> list[bytes]:
        """The elements that these bytes complete, without the space around them."""
        elements: list[bytes] = []
        start = at = 0
        for index, piece in enumerate(chunk.split(b'"')):
            if index:
                at += 1
                if self._escaped:
                    self._escaped = False
                elif self._depth:
                    self._in_string = not self._in_string
            if self.closed:
                break
            if piece:
                if self._in_string:
                    backslashes = len(piece) - len(piece.rstrip(b"\\"))
                    carried = self._escaped and backslashes == len(piece)
                    self._escaped = (backslashes + carried) % 2 == 1
                elif self._depth > 1 and b"}" not in piece and b"]" not in piece:
                    self._depth += piece.count(b"{") + piece.count(b"[")
                else:
                    start = self._structure(chunk, at, at + len(piece), start, elements)
                at += len(piece)
        if self._depth and not self.closed:
            self._hold(chunk[start:])
        return elements

    def _structure(self, chunk: bytes, at: int, end: int, start: int, elements: list[bytes]) -> int:
        """Read brackets and commas outside of strings; returns where the unfinished element begins."""
        for place in range(at, end):
            byte = chunk[place]
            if byte in b"[{":
                self._depth += 1
                if self._depth == 1:
                    start = place + 1
                    self.separator = b""
            elif byte in b"]}" and self._depth:
                self._depth -= 1
                if self._depth == 0:
                    self._end(chunk[start:place], elements)
                    self.closed = True
                    break
                if self._depth == 1:  # the element is whole, whenever its comma may come
                    self._end(chunk[start : place + 1], elements)
                    start = place + 1
                    self.separator = b","
            elif byte == 0x2C and self._depth == 1:
                self._end(chunk[start:place], elements)
                start = place + 1
                self.separator = b""
        return start

    def _hold(self, rest: bytes) -> None:
        if self._passing:
            return
        self._held += rest
        if len(self._held) > self._max_element_bytes:
            self._held.clear()
            self._passing = True

    def _end(self, last: bytes, elements: list[bytes]) -> None:
        self._hold(last)
        element = bytes(self._held).strip(_SPACE)
        if element:
            elements.append(element)
        self._held.clear()
        self._passing = False
