"""Answers that tell what became of an operation which began earlier, such as `GET …/responses/{id}` of a background
response, resumed streams of it, `POST …/{id}/cancel`, and lists of batches.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from .encodings import AnswerDecoder
from .errors import StoreError
from .providers import find_sights
from .providers.fields import decode_object
from .routes import route_path, undisguised

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import Message, Send

    from .providers.base import Api, StreamReader
    from .tracker import CostTracker
    from .usage import Report

MAX_LIST_BYTES = 1 << 20
"""Of a list no more is kept; what a longer one tells is left to the states of its operations."""
_CANCELS = ("/cancel", ":cancel")
_PLAIN = b"application/json"
"""Some APIs stream in this type, where the request asks for it; a state is one object."""


def watched(tracker: CostTracker, method: str, path: str, send: Send) -> Send:
    """`send`; where the answer may tell the state of operations, one that reads along. A path that could be read in two
    ways tells nothing: the answer may be about another operation than the one it seems to name.
    """
    path = route_path({"path": path})
    if method not in ("GET", "POST") or undisguised(path) != path:
        return send
    if method == "POST":
        path = path.rstrip("/")
        if not path.endswith(_CANCELS):
            return send
        path = path[: -len(_CANCELS[0])]
    found = find_sights(path)
    if found:
        return Sight(tracker, found, send).send
    listed = [api for api, _ in find_sights(path.rstrip("/") + "/-") if api.kind == "batch"]
    return Listing(tracker, listed, send).send if listed and method == "GET" else send


class Sight:
    """Reads an answer as it passes, untouched, and tells the tracker once what it says.

    Several APIs may share a path. Each reads the answer in its own way, and the one that began the operation is the
    one whose provider the ledger knows it under.
    """

    __slots__ = ("_decoder", "_found", "_readers", "_send", "_tracker")

    def __init__(self, tracker: CostTracker, found: Iterable[tuple[Api, str]], send: Send) -> None:
        self._tracker = tracker
        self._found = found
        self._send = send
        self._readers: list[tuple[Api, str, StreamReader]] = []
        self._decoder: AnswerDecoder | None = None

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and message["status"] == 200:
            self._begin(message.get("headers", ()))
        elif kind == "http.response.body" and self._readers:
            self._feed(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                try:
                    await self._send(message)
                finally:  # what was read is true, whether or not the client is still there
                    await self._tell()
                return
        await self._send(message)

    def _begin(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        headers = list(headers)
        content_type = next((v.strip().lower() for name, v in headers if name.lower() == b"content-type"), b"")
        self._decoder = _decoder(headers)
        self._readers = [
            (
                api,
                operation,
                api.stream_reader(hide_usage=False)
                if content_type.startswith(api.stream_types) and not content_type.startswith(_PLAIN)
                else api.body_reader(),
            )
            for api, operation in self._found
        ]

    def _feed(self, body: bytes) -> None:
        pieces = (body,) if self._decoder is None else self._decoder.feed(body)
        for piece in pieces:
            for _, _, reader in self._readers:
                reader.feed(piece)

    async def _tell(self) -> None:
        readers, self._readers = self._readers, []
        told_of: list[tuple[Api, list[str], Report]] = []
        for api, asked, reader in readers:
            reader.finish()
            report = reader.report
            told = report.provider_request_id
            names = [] if told is None else [told]
            if report.usage is not None and asked != told:
                names.append(asked)  # without counts, an answer without a name may be about anything
            told_of.append((api, names, report))
        await _sighted(self._tracker, told_of)


class Listing:
    """Reads a list of batches as it passes, untouched: each of its entries is a state like that of one asked for by
    name, so nobody gets at a batch's results without its end being seen.
    """

    __slots__ = ("_apis", "_body", "_decoder", "_send", "_tracker")

    def __init__(self, tracker: CostTracker, apis: Iterable[Api], send: Send) -> None:
        self._tracker = tracker
        self._apis = apis
        self._send = send
        self._body: bytearray | None = None
        self._decoder: AnswerDecoder | None = None

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start" and message["status"] == 200:
            self._body, self._decoder = bytearray(), _decoder(message.get("headers", ()))
        elif kind == "http.response.body" and self._body is not None:
            data = bytes(message.get("body", b""))
            for piece in (data,) if self._decoder is None else self._decoder.feed(data):
                self._body += piece
                if len(self._body) > MAX_LIST_BYTES:
                    self._body = None
                    break
            if self._body is not None and not message.get("more_body", False):
                try:
                    await self._send(message)
                finally:
                    body, self._body = bytes(self._body), None
                    await _sighted(self._tracker, self._read(body))
                return
        await self._send(message)

    def _read(self, body: bytes) -> Iterator[tuple[Api, list[str], Report]]:
        for entries in (decode_object(body) or {}).values():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict):
                    state = json.dumps(entry).encode()
                    for api in self._apis:
                        report = api.read_body(state)
                        if report.provider_request_id is not None:
                            yield api, [report.provider_request_id], report


def _decoder(headers: Iterable[tuple[bytes, bytes]]) -> AnswerDecoder | None:
    encoding = b",".join([value for name, value in headers if name.lower() == b"content-encoding"])
    return AnswerDecoder(encoding) if encoding else None


async def _sighted(tracker: CostTracker, found: Iterable[tuple[Api, list[str], Report]]) -> None:
    for api, names, report in found:
        if report.finished and not report.deferred:
            with suppress(StoreError):  # it may be the first that this process does; what is away now is asked again
                await tracker.ready()
            await tracker.operations.sighted(api.provider, names, report)
