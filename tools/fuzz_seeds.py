"""The pieces of recorded traffic that inputs are made of: small ones, so that a million of them takes minutes."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from askii_middleware.providers import find_apis, find_sights
from askii_middleware.providers.base import Api
from askii_middleware.providers.sockets import SOCKET_APIS
from tests.support.mutations import event_stream_frame, event_stream_frames
from tests.support.recordings import BOUNDARY, Recording, recordings, request_for

MAX_SEED_BYTES = 1000
_LONG_STRING = re.compile(rb'"[^"\\]{40,}"')
_LONG_ARRAY = re.compile(rb"\[[-\d.,eE\s]{80,}\]")


class Seed(NamedTuple):
    """A piece of traffic, and whose it is: an `Api`, a coding, nothing."""

    data: bytes
    of: Any = None


def short(text: bytes) -> bytes:
    """JSON with its long strings and vectors cut short."""
    return _LONG_ARRAY.sub(b"[0.5,1]", _LONG_STRING.sub(lambda m: m[0][:20] + b'"', text))


def windows(parts: list[bytes]) -> Iterator[bytes]:
    """Runs of a stream's parts, its ends more often than its middle."""
    parts = [part for part in parts if len(part) <= MAX_SEED_BYTES]
    for size in (1, 2, 4):
        for start in {*range(6), *range(0, len(parts), 40), *range(len(parts) - 6, len(parts))}:
            if 0 <= start < len(parts):
                yield b"".join(parts[start : start + size])
    if parts:
        yield b"".join(parts[:2] + parts[-3:])


def parts_of(recording: Recording) -> list[bytes]:
    text = recording.text
    if frames_of := event_stream_frames(text):
        return [event_stream_frame(*frame) for frame in frames_of]
    if recording.name.endswith(".sse"):
        return [short(piece) for piece in re.split(rb"(?<=\n\n)|(?<=\r\n\r\n)", text) if piece]
    if recording.name.endswith(".ndjson"):
        return [short(line) + b"\n" for line in text.split(b"\n") if line]
    return [short(text)]


def apis_of(recording: Recording) -> list[Api]:
    if recording.entry["method"] == "GET":
        return [api for api, _ in find_sights(recording.path)]
    return list(find_apis(recording.path))


def seeds() -> dict[str, list[Seed]]:
    """By family of parsers, what its inputs are made of. Exits where there is no corpus."""
    every = [recording for recording in recordings() if not recording.is_socket]
    if not every:
        raise SystemExit("the recorded provider bodies (../shared/corpus) are not here")
    pieces = {recording.name: [*{*windows(parts_of(recording))}] for recording in every}
    events = [piece for name, found in pieces.items() if name.endswith(".sse") for piece in found]
    values = [piece for name, found in pieces.items() if not name.endswith((".sse", ".bin")) for piece in found]
    objects = [line for piece in values for line in piece.splitlines() if line.startswith(b"{")] + [
        event.partition(b"data: ")[2].strip() for event in events if event.count(b"data: ") == 1
    ]
    amazon = [piece for name, found in pieces.items() if name.endswith(".bin") for piece in found if b":event" in piece]
    streamed = [Seed(p, api) for r in every if r.streamed for api in apis_of(r) for p in pieces[r.name]]
    plain = [Seed(p, api) for r in every if not r.streamed for api in apis_of(r) for p in pieces[r.name]]
    asked = [r for r in every if r.entry["method"] == "POST"]
    return {
        "sse": [Seed(event) for event in events],
        "lines": [Seed(piece) for piece in values],
        "arrays": [Seed(b"[" + b",\n".join(objects[at : at + 3]) + b"]") for at in range(len(objects))],
        "frames": [Seed(piece) for piece in amazon],
        "scanner": [Seed(piece) for piece in objects],
        "encodings": [*coded(values + events)],
        "forms": [*form_seeds(every)],
        "streams": streamed,
        "bodies": plain,
        "requests": [Seed(request_for(r).body, api) for r in asked for api in apis_of(r)],
        "sockets": [*socket_seeds()],
    }


def coded(plain: list[bytes]) -> Iterator[Seed]:
    bare = zlib.compressobj(wbits=-15)
    for text in plain[::7]:
        yield Seed(gzip.compress(text), b"gzip")
        yield Seed(gzip.compress(text[:50]) + gzip.compress(text[50:]), b"x-gzip")
        yield Seed(zlib.compress(text), b"deflate")
        yield Seed(bare.copy().compress(text) + bare.copy().flush(), b"deflate")
        yield Seed(gzip.compress(zlib.compress(text)), b"deflate, gzip")
        for name, pack in optional_codings():
            yield Seed(pack(text), name)
    yield Seed(gzip.compress(bytes(300_000)), b"gzip")


def optional_codings() -> Iterator[tuple[bytes, Callable[[bytes], bytes]]]:
    try:
        import brotli  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 - an extra

        yield b"br", brotli.compress
    except ImportError:
        pass
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 - only here: another library than the one that unpacks

        yield b"zstd", zstandard.ZstdCompressor().compress
    except ImportError:
        pass


def form_seeds(every: list[Recording]) -> Iterator[Seed]:
    for recording in every:
        if "/audio/" in recording.path:
            request = request_for(recording)
            file = request.body.index(b"ID3")
            end = request.body.index(f"\r\n--{BOUNDARY}--".encode())
            yield Seed(request.body[: file + 40] + request.body[end:], request.content_type.encode())
    text = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    parts = [text % pair for pair in ((b"model", b"m"), (b"n", b"2"), (b"stream", b"true"), (b"image[]", b"x"))]
    for count in range(5):
        yield Seed(b"".join(parts[:count]) + b"--b--\r\n", b"multipart/form-data; boundary=b")
        yield Seed(b"".join(reversed(parts[:count])) + b"--b--", b'Multipart/Form-Data; boundary="b"')


def socket_seeds() -> Iterator[Seed]:
    for recording in recordings():
        if recording.is_socket:
            frames_of = [json.loads(line) for line in recording.text.splitlines() if line]
            said = [frame["direction"][:1].encode() + short(json.dumps(frame["data"]).encode()) for frame in frames_of]
            query = recording.entry["request_path"].partition("?")[2].encode()
            for api in SOCKET_APIS:
                for size in (2, 5, 100):
                    for start in range(0, len(said), 3):
                        yield Seed(b"\n".join([*said[:2], *said[start : start + size]]), (api, query))
