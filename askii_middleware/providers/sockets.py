"""Which sockets are metered: the formats over WebSockets, found by the end of a path.

To add one, write a module with its `SocketApi` and name it in `SOCKET_APIS`.
"""

from __future__ import annotations

from . import find_apis
from .gemini_live import LiveSocket
from .openai_realtime import RealtimeSocket
from .openai_responses_socket import ResponsesSocket
from .socket_base import SocketApi

_RESPONSES = find_apis("/responses")[0]
_GEMINI = next(iter(find_apis("/v1beta/models/x:generateContent")), _RESPONSES)

SOCKET_APIS: tuple[SocketApi, ...] = (RealtimeSocket(_RESPONSES), ResponsesSocket(_RESPONSES), LiveSocket(_GEMINI))


_ENDINGS = tuple((tuple(suffix.casefold() for suffix in api.suffixes), api) for api in SOCKET_APIS)


def find_socket(path: str) -> SocketApi | None:
    """The API whose path ending a socket's path has, in any case and under any mount prefix; None for other sockets."""
    path = path.rstrip("/").casefold()
    return next((api for endings, api in _ENDINGS if path.endswith(endings)), None)
