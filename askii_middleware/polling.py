"""Answers that tell what became of an operation which began earlier, such as `GET …/responses/{id}` of a background
response, resumed streams of it, and `POST …/{id}/cancel`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .encodings import AnswerDecoder
from .providers import find_sights

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import Message, Send

    from .providers.base import Api, StreamReader
    from .tracker import CostTracker

_CANCELS = ("/cancel", ":cancel")
_PLAIN = b"application/json"
"""Some APIs stream in this type, where the request asks for it; a state is one object."""


def watched(tracker: CostTracker, method: str, path: str, send: Send) -> Send:
    """`send`; where the answer may tell the state of an operation, one that reads along."""
    if method == "POST":
        path = path.rstrip("/")
        if not path.endswith(_CANCELS):
            return send
        path = path[: -len(_CANCELS[0])]
    elif method != "GET":
        return send
    found = find_sights(path)
    return Sight(tracker, found, send).send if found else send


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
        content_type = encoding = b""
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-type":
                content_type = value.strip().lower()
            elif lower == b"content-encoding":
                encoding = encoding + b", " + value if encoding else value
        self._decoder = None if encoding in (b"", b"identity") else AnswerDecoder(encoding)
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
        for api, asked, reader in readers:
            reader.finish()
            report = reader.report
            told = report.provider_request_id
            names = [] if told is None else [told]
            if report.usage is not None and asked != told:
                names.append(asked)  # without counts, an answer without a name may be about anything
            await self._tracker.operations.sighted(api.provider, names, report)
