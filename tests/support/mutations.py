"""Damage to bytes, as networks, gateways and providers' own defects do it."""

from __future__ import annotations

import re
import struct
from binascii import crc32
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

ODD_VALUES = (
    *(b"null", b"true", b"-1", b"0", b"1.5", b"1e400", b"-0.0", b"NaN", b"-Infinity", b"1" * 5000, b"99999999999"),
    *(b'""', b'"12"', b'"\\ud800"', b'"\\u0000"', b'"' + b"a" * 300 + b'"', b'"\xff"', b"[]", b"[null]", b"[[-7]]"),
    *(b"{}", b'{"usage":{"prompt_tokens":-5}}', b'{"a":[{"input_tokens":-1}]}', b"[" * 600 + b"]" * 600, b""),
)
ODD_BYTES = (
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\n\n",
        b"\r\n\r\n",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
    ),
    *(b",", b":", b"data:", b"data: ", b"event: x\n", b": c\n\n", b"data: [DONE]\n\n", b'"usage":null', b"\x1f\x8b"),
)
_VALUE = re.compile(rb'(?<=[:\[,])\s*(?:-?\d[\d.eE+-]*|true|false|null|"(?:[^"\\]|\\.){0,200}")')

Mutation = Callable[[Random, bytes], bytes]


def flip(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]


def put_byte(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :]


def delete(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice((1, 1, 2, 5, 40, 400)) :]


def insert(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(ODD_BYTES) + data[at:]


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def behead(rng: Random, data: bytes) -> bytes:
    return data[rng.randrange(len(data) + 1) :]


def double(rng: Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.choice((1, 10, 100, 1000))]
    return data[:start] + piece + data[start:]


def swap(rng: Random, data: bytes) -> bytes:
    one, two = sorted(rng.randrange(len(data)) for _ in range(2))
    size = min(two - one, rng.choice((1, 10, 100)))
    return data[:one] + data[two : two + size] + data[one + size : two] + data[one : one + size] + data[two + size :]


def other_value(rng: Random, data: bytes) -> bytes:
    """A JSON scalar replaced by any other value."""
    at = rng.randrange(len(data))
    found = _VALUE.search(data, at) or _VALUE.search(data)
    if found is None:
        return data
    return data[: found.start()] + rng.choice(ODD_VALUES) + data[found.end() :]


_MUTATIONS: tuple[Mutation, ...] = (
    *(flip, put_byte, delete, insert, truncate, behead, double, swap),
    *(other_value,) * 8,  # the one that leaves the frame whole: it goes deepest
)


def mutate(rng: Random, data: bytes) -> bytes:
    """A few damages in a row. Frames of Amazon's event streams are mostly made whole again around the damage, because
    their checksums would keep all of it out.
    """
    if rng.random() < 0.8 and (frames := event_stream_frames(data)):
        at = rng.randrange(len(frames))
        headers, payload = frames[at]
        if payload and rng.random() < 0.8:
            payload = mutate(rng, payload)
        elif headers:
            headers = flip(rng, headers)
        frames[at] = (headers, payload)
        return b"".join(event_stream_frame(*frame) for frame in frames)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if data:
            data = rng.choice(_MUTATIONS)(rng, data)
    return data


def event_stream_frame(headers: bytes, payload: bytes) -> bytes:
    """A frame with its lengths and checksums."""
    prelude = struct.pack(">II", len(headers) + len(payload) + 16, len(headers))
    head = prelude + struct.pack(">I", crc32(prelude)) + headers + payload
    return head + struct.pack(">I", crc32(head))


def event_stream_frames(data: bytes) -> list[tuple[bytes, bytes]]:
    """Headers and payloads of the frames, where data is an event stream and nothing else; else none."""
    frames, at = [], 0
    while at + 16 <= len(data):
        size, head = struct.unpack_from(">II", data, at)
        if not 16 + head <= size <= len(data) - at or struct.unpack_from(">I", data, at + 8)[0] != crc32(
            data[at : at + 8]
        ):
            return []
        frames.append((data[at + 12 : at + 12 + head], data[at + 12 + head : at + size - 4]))
        at += size
    return frames if at == len(data) else []


def split(rng: Random, data: bytes) -> list[bytes]:
    """The data in pieces: cut at a few places, or byte by byte for a stretch, seldom from end to end."""
    size, how = len(data), rng.random()
    places: Sequence[int]
    if how < 0.02:
        places = range(1, size)
    elif how < 0.3:
        start = rng.randrange(size + 1)
        places = range(start, min(start + 40, size))
    elif how < 0.4:
        places = range(0, size, rng.choice((3, 7, 64)))
    else:
        places = sorted([rng.randrange(size + 1) for _ in range(rng.randint(1, 6))])  # equal ones: an empty piece
    bounds = [0, *places, size]
    return [data[start:end] for start, end in pairwise(bounds)]
