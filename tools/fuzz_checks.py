"""What holds of every input to every parser, and the pieces of recorded traffic that inputs are made of."""

from __future__ import annotations

import gzip
import json
import logging
import re
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from typing import Any, NamedTuple

import msgspec

from askii_middleware.body import UnreadableBodyError, parse_body
from askii_middleware.encodings import AnswerDecoder
from askii_middleware.forms import read_form
from askii_middleware.providers import APIS, find_apis, find_sights
from askii_middleware.providers.base import Api, InvalidRequestError, Rewrite, StreamReader
from askii_middleware.providers.eventstream import FrameReader
from askii_middleware.providers.json_array import ArrayFramer
from askii_middleware.providers.json_lines import LineFramer
from askii_middleware.providers.jsonscan import TopLevelScanner, without_members
from askii_middleware.providers.sockets import SOCKET_APIS
from askii_middleware.providers.sse import Framer
from askii_middleware.usage import Report
from tests.support.mutations import event_stream_frame, event_stream_frames, split
from tests.support.recordings import BOUNDARY, Recording, recordings, request_for

Check = Callable[[Random, bytes, Any], None]
MAX_SEED_BYTES = 1000
LIMITS = (64, 700, 1 << 20)
WANTED = frozenset(("id", "model", "usage", "type", "status", "response", "error", "usageMetadata"))
_LONG_STRING = re.compile(rb'"[^"\\]{40,}"')
_LONG_ARRAY = re.compile(rb"\[[-\d.,eE\s]{80,}\]")
logging.disable()  # the parsers' libraries tell of each damaged form
_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Seed(NamedTuple):
    """A piece of traffic, and whose it is: an `Api`, a coding, nothing."""

    data: bytes
    of: Any = None


# Framers -------------------------------------------------------------------------------------------------------------


def sse(rng: Random, data: bytes, _: Any) -> None:
    limit = rng.choice(LIMITS)
    read = []
    for chunks in ([data], split(rng, data)):
        framer, blocks = Framer(limit), []
        for chunk in chunks:
            blocks += framer.push(chunk)
            assert framer._size + len(framer._line) <= limit + 1, "holds too much"
            assert framer.idle or framer._line or framer._raw or framer._passing
        blocks += framer.finish()
        assert b"".join(block.raw for block in blocks) == data, "bytes were changed"
        read.append([block.data for block in blocks if block.data is not None])
    assert read[0] == read[1], "the split tells"


def lines(rng: Random, data: bytes, _: Any) -> None:
    limit = rng.choice(LIMITS)
    expected = [line for line in (piece.removesuffix(b"\r") for piece in data.split(b"\n")) if line]
    kept = [line for line in expected if len(line) <= limit]
    framer, found = LineFramer(limit), []
    for chunk in split(rng, data):
        found += framer.push(chunk)
        assert len(framer._line) <= limit + 1, "holds too much"
    found += framer.finish()
    assert found == kept, "other lines"
    assert framer.left_out == len(expected) - len(kept)


def arrays(rng: Random, data: bytes, _: Any) -> None:
    limit = rng.choice(LIMITS)
    read = []
    for chunks in ([data], split(rng, data)):
        framer, found = ArrayFramer(limit), []
        for chunk in chunks:
            found += framer.push(chunk)
            assert len(framer._held) <= limit, "holds too much"
        read.append((found, framer.closed))
    assert read[0] == read[1], "the split tells"
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(value, list) and limit > len(data):
        assert read[0][1]
        assert [json.loads(element) for element in read[0][0]] == value or b"NaN" in data, "other elements"


def frames(rng: Random, data: bytes, _: Any) -> None:
    limit = rng.choice(LIMITS)
    read = []
    for chunks in ([data], split(rng, data)):
        reader, found = FrameReader(limit), []
        for chunk in chunks:
            found += reader.push(chunk)
            assert len(reader._held) <= limit + 12, "holds too much"
        read.append(([(dict(frame.headers), frame.payload) for frame in found], reader.broken))
    assert read[0] == read[1], "the split tells"
    whole = event_stream_frames(data)
    if whole and not read[0][1] and limit > len(data):
        assert [payload for _, payload in read[0][0]] == [payload for _, payload in whole], "other payloads"


def scanner(rng: Random, data: bytes, _: Any) -> None:
    read = []
    for chunks in ([data], split(rng, data)):
        one = TopLevelScanner(WANTED, 500)
        for chunk in chunks:
            one.push(chunk)
            assert len(one._value or b"") <= 500, "holds too much"
            assert len(one._text or b"") <= 128, "holds too much"
        read.append((one.members, one.closed))
    assert read[0] == read[1], "the split tells"
    try:
        fields = _raw_members(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    found = {member.key: member.value for member in read[0][0]}
    known = {name: bytes(value) for name, value in fields.items() if name in WANTED and len(bytes(value)) <= 500}
    assert found.items() >= known.items(), "other members"
    assert read[0][1], "did not see the end"
    if rng.random() < 0.2:
        rest = _raw_members(without_members(data, "usage"))
        assert {k: bytes(v) for k, v in rest.items()} == {k: bytes(v) for k, v in fields.items() if k != "usage"}


def encodings(rng: Random, data: bytes, coding: bytes) -> None:
    limit = rng.choice((1000, 1 << 20))
    read = []
    for chunks in ([data], split(rng, data)):
        decoder = AnswerDecoder(coding, limit)
        read.append(b"".join(piece for chunk in chunks for piece in decoder.feed(chunk)))
        assert len(read[-1]) <= limit or coding == b"identity", "read beyond its limit"
    longer, shorter = sorted(read, key=len, reverse=True)
    # What an error swallows is up to the split; what comes before is not.
    assert longer.startswith(shorter), "the split tells"


def forms(rng: Random, data: bytes, content_type: bytes) -> None:
    try:
        form = read_form(content_type, data)
    except UnreadableBodyError:
        return
    for name, value in form.fields.items():
        msgspec.json.decode(value)
        assert name.isprintable() or name
    try:
        changed = form.replace("model", f"other-{rng.randrange(9)}")
    except ValueError:
        return
    fields = read_form(content_type, changed).fields
    assert bytes(fields.pop("model")).startswith(b'"other-')
    assert fields == {name: value for name, value in form.fields.items() if name != "model"}, "other members changed"


# APIs ----------------------------------------------------------------------------------------------------------------


def check_report(report: Report) -> None:
    for usage in (report.usage, *(other for _, other in report.other_usage)):
        if usage is not None:
            for name in usage.__struct_fields__:
                assert getattr(usage, name) >= 0, f"{name} is negative"
    assert report.cost_nano_usd is None or (type(report.cost_nano_usd) is int and report.cost_nano_usd >= 0)
    for text in (report.model, report.service_tier, report.provider_request_id):
        assert text is None or (0 < len(text) <= 300 and text.encode())
    assert report.visible_bytes >= 0
    assert report.visible_deltas >= 0


def drain(reader: StreamReader, chunks: Iterator[bytes] | list[bytes], *, untouched: bool) -> bytes:
    out = []
    for chunk in chunks:
        seen = reader.feed(chunk)
        assert not untouched or seen is chunk, "bytes were changed"
        out.append(seen)
    rest = reader.finish()
    assert not untouched or rest == b"", "bytes were added"
    check_report(reader.report)
    return b"".join([*out, rest])


def streams(rng: Random, data: bytes, own: Api | None) -> None:
    api = own if own is not None and rng.random() < 0.9 else rng.choice(APIS)
    hide = rng.random() < 0.3
    read = []
    for chunks in ([data], split(rng, data)):
        reader = api.stream_reader(hide_usage=hide)
        out = drain(reader, chunks, untouched=not hide)
        read.append((out, reader.report))
    assert read[0] == read[1], f"{api.name} hide={hide}: the split tells: {read[0][1]} {read[1][1]}"
    assert hide or read[0][0] == data


def bodies(rng: Random, data: bytes, own: Api | None) -> None:
    api = own if own is not None and rng.random() < 0.9 else rng.choice(APIS)
    read = []
    for chunks in ([data], split(rng, data)):
        reader = api.body_reader()
        drain(reader, chunks, untouched=True)
        read.append(reader.report)
    assert read[0] == read[1], f"{api.name}: the split tells: {read[0]} {read[1]}"
    check_report(api.read_body(data))


def requests(rng: Random, data: bytes, own: Api | None) -> None:
    api = own if own is not None and rng.random() < 0.9 else rng.choice(APIS)
    try:
        parsed = parse_body(data)
    except UnreadableBodyError:
        return
    if parsed.fields is None or not api.owns(parsed.fields):
        return
    try:
        request = api.parse(dict(parsed.fields), parsed.size)
    except InvalidRequestError as error:
        assert str(error)
        return
    assert request.input_bound >= request.input_estimate >= 0, f"{request.input_bound} {request.input_estimate}"
    assert request.choices >= 0
    assert request.output_limit is None or request.output_limit >= 0
    changed = api.rewrite(request, Rewrite(model="other-model"))
    after = parse_body(changed).fields
    assert after is not None
    named = {"model", "requests"}  # the items of a batch name the model once more
    others = {name: bytes(value) for name, value in after.items() if name not in named}
    assert others == {n: bytes(v) for n, v in parsed.fields.items() if n not in named}, "other members changed"


def sockets(rng: Random, data: bytes, own: tuple[Any, bytes]) -> None:
    api, query = own
    try:
        session = api.session(query)
    except InvalidRequestError:
        return
    session.opening()
    for line in data.split(b"\n"):
        frame: str | bytes = line[1:]
        if rng.random() < 0.8:
            frame = line[1:].decode(errors="replace")
        if line[:1] == b"s":
            try:
                turns, passed = session.sent(frame)
            except InvalidRequestError:
                break
            assert type(passed) is type(frame)
        else:
            turns = session.received(frame)
        for turn in turns:
            check_report(turn.report)
        assert len(session.turns) <= 64, "holds too many"


# Pieces of recorded traffic ------------------------------------------------------------------------------------------


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


def families() -> dict[str, tuple[Check, list[Seed]]]:
    """Every family of parsers: its check, and the seeds of its inputs."""
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
        "sse": (sse, [Seed(event) for event in events]),
        "lines": (lines, [Seed(piece) for piece in values]),
        "arrays": (arrays, [Seed(b"[" + b",\n".join(objects[at : at + 3]) + b"]") for at in range(len(objects))]),
        "frames": (frames, [Seed(piece) for piece in amazon]),
        "scanner": (scanner, [Seed(piece) for piece in objects]),
        "encodings": (encodings, [*coded(values + events)]),
        "forms": (forms, [*form_seeds(every)]),
        "streams": (streams, streamed),
        "bodies": (bodies, plain),
        "requests": (requests, [Seed(request_for(r).body, api) for r in asked for api in apis_of(r)]),
        "sockets": (sockets, [*socket_seeds()]),
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
        import zstandard  # noqa: PLC0415 - only here: another library than the one that unpacks

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


# Memory --------------------------------------------------------------------------------------------------------------


def memory_targets() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What reads without end, and how to make it: each kind of reader once."""
    yield "sse.Framer", Framer
    yield "LineFramer", LineFramer
    yield "ArrayFramer", ArrayFramer
    yield "FrameReader", FrameReader
    yield "TopLevelScanner", lambda: TopLevelScanner(WANTED)
    kinds: set[type] = set()
    for api in APIS:
        hiding = partial(api.stream_reader, hide_usage=True)
        for make in (partial(api.stream_reader, hide_usage=False), hiding, api.body_reader):
            kind = type(make())
            if kind not in kinds:
                kinds.add(kind)
                yield f"{api.name}: {kind.__name__}", make


def held_bytes(value: Any, seen: set[int]) -> int:
    """Roughly what an object keeps, all that it refers to included."""
    if id(value) in seen or isinstance(value, type) or callable(value):
        return 0
    seen.add(id(value))
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        inner: Iterable[Any] = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset | deque):
        inner = value
    else:
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        inner = [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]
    return size + sum(held_bytes(item, seen) for item in inner)


def endless() -> Iterator[tuple[str, bytes]]:
    """Answers that never end: 64 kB that come again and again."""
    size = 1 << 16
    yield "one line", b"a" * size
    yield "one string", b'"' + b"a" * (size - 1)
    yield "one event", b"data: " + b"a" * (size - 7) + b"\n"
    yield "empty lines", b"\n" * size
    yield "carriage returns", b"\r" * size
    yield "opening brackets", b"[" * size
    yield "opening braces", b'{"a":' * (size // 5)
    yield "members", b'"id":"x","model":"y","usage":{"prompt_tokens":1},' * (size // 49)
    event = b'data: {"id":"x","model":"y","choices":[{"delta":{"content":"z"}}],"usage":{"prompt_tokens":1}}\n\n'
    yield "events", event * (size // len(event))
    yield "binary", bytes(range(256)) * (size // 256)
    frame = event_stream_frame(b"", b'{"usage":{"inputTokens":1}}')
    yield "frames", frame * (size // len(frame))
