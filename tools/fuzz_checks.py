"""What holds of every input to every parser."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import msgspec

from askii_middleware.body import UnreadableBodyError, parse_body
from askii_middleware.encodings import AnswerDecoder
from askii_middleware.forms import read_form
from askii_middleware.providers import APIS
from askii_middleware.providers.base import Api, InvalidRequestError, Rewrite, StreamReader
from askii_middleware.providers.eventstream import FrameReader
from askii_middleware.providers.json_array import ArrayFramer
from askii_middleware.providers.json_lines import LineFramer
from askii_middleware.providers.jsonscan import TopLevelScanner, without_members
from askii_middleware.providers.sse import Framer
from askii_middleware.usage import Report
from tests.support.mutations import event_stream_frames, split

Check = Callable[[Random, bytes, Any], None]
"""Takes a source of chance, the input, and whose it is (an `Api`, a coding, ...); raises for what does not hold."""
LIMITS = (64, 700, 1 << 20)
WANTED = frozenset(("id", "model", "usage", "type", "status", "response", "error", "usageMetadata"))
logging.disable()  # the parsers' libraries tell of each damaged form
_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


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


def drain(reader: StreamReader, chunks: Iterable[bytes], *, untouched: bool) -> bytes:
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
    except InvalidRequestError:
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


CHECKS: dict[str, Check] = {
    "sse": sse,
    "lines": lines,
    "arrays": arrays,
    "frames": frames,
    "scanner": scanner,
    "encodings": encodings,
    "forms": forms,
    "streams": streams,
    "bodies": bodies,
    "requests": requests,
    "sockets": sockets,
}
