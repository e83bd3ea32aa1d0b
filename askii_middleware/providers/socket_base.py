"""What every format over WebSockets has to tell: which sockets are its own, which frames begin a response, of which
model and how large, what a response used, and how to refuse. Pure: frames in, values out.

A socket carries many calls. Each of them is a `Turn`: one response of the model (or one transcription), which is held
for before it can begin and settled when it is over. A `Session` follows one socket's frames, in both directions, and
keeps the turns that are open.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, Literal

import msgspec

from ..usage import Report
from .base import CallRequest, InvalidRequestError, Kind, Refusal
from .fields import DECODE_ERRORS, decode_object

Frame = str | bytes
"""One message: text stays text, and bytes stay bytes."""
MAX_OPEN_TURNS = 64
"""On one socket. A client that asks for more at once is refused."""
TurnEnd = Literal["done", "failed", "stopped", "dropped"]
"""`done`: it came to its own end; `failed`: the provider refused it or failed; `stopped`: it was broken off by its
client; `dropped`: it was held for and can no longer begin.
"""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Turn:
    """One call on a socket.

    Attributes:
        request: what bounds it. `fields` are those of the frame that asked for it, where it has any.
        kind: a response (`speech` or `text`), or the `transcription` of what the client said.
        named: the frame it was held for names its model, so another can stand there.
        sure: a frame of the client has asked for it; else one may begin by itself (a pause in what is heard).
        begun: the server has begun it.
        id: the provider's, once it is known.
        lane: where the format runs several turns side by side.
        event_id: the client's own name for the frame that asked for it.
        ending: how it is over; None while it is open.
    """

    __slots__ = ("begun", "ending", "event_id", "id", "kind", "lane", "named", "report", "request", "sure")

    def __init__(self, request: CallRequest, kind: Kind, *, sure: bool = False, named: bool = False) -> None:
        self.request = request
        self.kind = kind
        self.sure = sure
        self.named = named
        self.begun = False
        self.id: str | None = None
        self.lane: str | None = None
        self.event_id: str | None = None
        self.report = Report()
        self.ending: TurnEnd | None = None


class Session(ABC):
    """One socket. None of its methods keeps more than a few names and counts.

    `sent` and `received` return the turns that the frame has changed: one without `ending` that is new must be held
    for before the frame goes on, one with `ending` is to be settled after it.
    """

    def __init__(self) -> None:
        self.model: str | None = None
        """The model that is called; None while nobody has named it."""
        self.turns: list[Turn] = []
        """Those that are open."""

    def opening(self) -> Turn | None:
        """The turn to hold for before the socket opens; None where the opening names no model."""
        return None

    @abstractmethod
    def sent(self, frame: Frame) -> tuple[list[Turn], Frame]:
        """Take a frame of the client. Returns the changed turns, and the frame to pass on: the same object unless its
        model had to be changed to the one that is called. Raises InvalidRequestError.
        """

    @abstractmethod
    def received(self, frame: Frame) -> list[Turn]:
        """Take a frame of the server. Returns the changed turns. Never raises for what it contains."""

    @abstractmethod
    def rewritten(self, turn: Turn, frame: Frame, *, model: str | None, output_limit: int | None) -> Frame:
        """The frame that asked for a turn with another model, or with a limit of the output, written into it."""

    def admitted(self, turn: Turn, model: str) -> None:
        """The turn was held for at this model, perhaps not the one that was asked for."""
        if turn.named:
            self.model = model

    def add(self, turn: Turn) -> Turn:
        """Open a turn. Raises InvalidRequestError beyond `MAX_OPEN_TURNS`."""
        if len(self.turns) >= MAX_OPEN_TURNS:
            raise InvalidRequestError(f"more than {MAX_OPEN_TURNS} responses are open on this socket")
        self.turns.append(turn)
        return turn

    def end(self, turn: Turn, ending: TurnEnd) -> Turn:
        """A turn is over."""
        turn.ending = ending
        turn.report.finished = turn.report.finished or ending == "done"
        if turn in self.turns:
            self.turns.remove(turn)
        return turn

    def adopt(self, turn: Turn, changed: list[Turn]) -> Turn:
        """Open a turn that the server began by itself. Where there are too many, the oldest one is given up."""
        if len(self.turns) >= MAX_OPEN_TURNS:
            changed.append(self.end(self.turns[0], "stopped"))
        self.turns.append(turn)
        changed.append(turn)
        return turn

    def waiting(self, kind: Kind, lane: str | None = None) -> Turn | None:
        """The turn that would begin next: one that was asked for, else one that may begin by itself."""
        found = [t for t in self.turns if not t.begun and t.kind == kind and (t.lane == lane or not t.sure)]
        return next((turn for turn in found if turn.sure), found[0] if found else None)


class SocketApi(ABC):
    """One metered API over WebSockets."""

    name: str
    """As of the same API over HTTP, or its own: `openai.realtime`."""
    family: str
    """Fallbacks stay within it."""
    provider: str
    suffixes: tuple[str, ...]
    """How the paths of its sockets end."""

    @abstractmethod
    def session(self, query: bytes) -> Session:
        """A socket that is about to open. Raises InvalidRequestError."""

    def renamed_query(self, query: bytes, model: str) -> bytes:  # noqa: ARG002 - most name it in a frame
        """The query with another model in it."""
        return query

    @abstractmethod
    def refusal(self, refusal: Refusal) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Body and further headers of the HTTP answer that refuses a socket before it opens."""

    @abstractmethod
    def error_frame(self, refusal: Refusal) -> str | None:
        """The event that tells of a refusal on an open socket; None where the API has none and closes with a reason."""


def read_frame(frame: Frame) -> dict[str, msgspec.Raw] | None:
    """The top level of a JSON frame, each value in its own bytes; None for any other frame."""
    try:
        return _members(frame)
    except DECODE_ERRORS:
        pass
    value = decode_object(frame.encode(errors="surrogatepass") if isinstance(frame, str) else frame)
    if value is None:
        return None
    return {name: msgspec.Raw(json.dumps(member).encode()) for name, member in value.items()}


def like(frame: Frame, content: bytes) -> Frame:
    """New content as the kind of message that the old one was."""
    return content if isinstance(frame, bytes) else content.decode()


def member_at(source: Any, *path: str) -> Any:
    """A value deep in decoded JSON; `MISSING` where it is not there."""
    for name in path:
        if not isinstance(source, dict) or name not in source:
            return MISSING
        source = source[name]
    return source


MISSING: Any = object()
"""What is not there, as distinct from `null`."""
