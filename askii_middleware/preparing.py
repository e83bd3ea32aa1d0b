"""The request that the application gets: changed only as far as its admission demands."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from .encodings import readable_accept_encoding
from .intake import Intake, target_of
from .providers.base import CallRequest, Rewrite

if TYPE_CHECKING:
    from starlette.types import Scope

    from .calls import Call

_UNSEEN_BODIES = frozenset(("http.response.pathsend", "http.response.zerocopysend"))
"""Extensions by which an application answers with a file: nobody here would see the bytes."""
_REWRITE_REPLACES = frozenset((b"content-length", b"content-encoding", b"transfer-encoding"))
_READABLE_REPLACES = _REWRITE_REPLACES | {b"accept-encoding"}


def prepare(
    intake: Intake, request: CallRequest, call: Call, scope: Scope, *, inject_usage: bool, plain_answer: bool = False
) -> bytes:
    """Change the request in `scope` as its admission demands, and nothing else of it. Returns the body.

    `plain_answer`: the answer should come without encoding, because it may have to be cut.
    """
    api, body, model = intake.api, intake.body, call.model
    assert api is not None
    same = model == (request.model if intake.place is None else call.spec.model)
    change = Rewrite(
        # A batch names its models item by item.
        model=None if same or api.kind == "batch" else model,
        output_limit=call.write_output_limit,
        inject_usage=inject_usage,
    )
    if change.model is not None and intake.place is not None:
        scope["path"], raw_path = intake.place.renamed(target_of(scope), model)
        scope["raw_path"] = raw_path or quote(scope["path"]).encode()
    if intake.form is not None:
        if change.model is not None and (intake.place is None or request.model is not None):
            body = intake.form.replace("model", model)
            scope["headers"] = _headers_for(scope["headers"], len(body), readable=False)
    elif change.model is not None or change.output_limit is not None or inject_usage:
        body = api.rewrite(request, change)
        scope["headers"] = _headers_for(scope["headers"], len(body), readable=inject_usage or plain_answer)
    elif plain_answer:
        others = [header for header in scope["headers"] if header[0].lower() != b"accept-encoding"]
        scope["headers"] = [*others, (b"accept-encoding", b"identity")]
    extensions = scope.get("extensions")
    if extensions and not _UNSEEN_BODIES.isdisjoint(extensions):
        scope["extensions"] = {name: value for name, value in extensions.items() if name not in _UNSEEN_BODIES}
    scope["headers"] = [
        (name, readable_accept_encoding(value)) if name.lower() == b"accept-encoding" else (name, value)
        for name, value in scope["headers"]
    ]
    state = scope.get("state")
    if state is None:
        state = scope["state"] = {}
    if isinstance(state, MutableMapping):
        state["askii_model"] = model
    return body


def _headers_for(headers: Iterable[tuple[bytes, bytes]], length: int, *, readable: bool) -> list[tuple[bytes, bytes]]:
    """The headers of a rewritten body: its length, and no encoding or transfer coding. `readable`: the answer must be
    read to take something out of it again, so it is asked for without encoding.
    """
    dropped = _READABLE_REPLACES if readable else _REWRITE_REPLACES
    kept = [header for header in headers if header[0].lower() not in dropped]
    kept.append((b"content-length", b"%d" % length))
    if readable:
        kept.append((b"accept-encoding", b"identity"))
    return kept
