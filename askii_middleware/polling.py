"""Answers that tell what an operation cost which began earlier: `GET …/responses/{id}` of a background response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .providers import find_apis

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from .providers.base import StreamReader
    from .tracker import CostTracker


def polls(path: str) -> bool:
    """Whether a GET of this path may answer with an operation's usage."""
    parent, _, name = path.rstrip("/").rpartition("/")
    return bool(name) and parent.endswith("/responses")


class Sight:
    """Reads an answer as it passes, untouched, and tells the tracker once what it says."""

    def __init__(self, tracker: CostTracker, path: str, send: Send) -> None:
        self._tracker = tracker
        self._api = find_apis(path.rstrip("/").rpartition("/")[0])[0]
        self._send = send
        self._reader: StreamReader | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            headers = {name.lower(): value for name, value in message.get("headers", ())}
            if headers.get(b"content-encoding", b"identity") == b"identity":
                streamed = headers.get(b"content-type", b"").startswith(b"text/event-stream")
                self._reader = self._api.stream_reader(hide_usage=False) if streamed else self._api.body_reader()
        await self._send(message)
        if self._reader is not None and message["type"] == "http.response.body":
            self._reader.feed(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                self._reader.finish()
                self._tracker.sighted(self._reader.report)
                self._reader = None
