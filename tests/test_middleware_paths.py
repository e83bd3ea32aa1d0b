"""No way of writing a path takes a call past the meter: it is metered, or refused, and never reaches the application
as something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest

from askii_middleware.providers import APIS

from .support.asgi import Scripted, ask, http_scope, plain
from .support.ledgers import ledger
from .test_routes import filled

BODY: dict[str, Any] = {
    "model": "free",
    "messages": [{"role": "user", "content": "hi"}],
    "contents": [{"parts": [{"text": "hi"}]}],
    "content": {"parts": [{"text": "hi"}]},
    "instances": [{"content": "hi"}],
    **dict.fromkeys(("input", "prompt", "message", "query", "voice"), "hi"),
    "documents": ["hi"],
    "texts": ["hi"],
    "max_tokens": 5,
}
"""What belongs to most APIs."""


def tail(path: str, form: str) -> str:
    """The last three letters, each as `form` has it."""
    return path[:-3] + "".join(form.format(ord(letter)) for letter in path[-3:])


SENT: dict[str, Callable[[str], str]] = {
    "escaped letters": lambda path: tail(path, "%{:02x}"),
    "letters escaped twice": lambda path: tail(path, "%25{:02x}"),
    "escaped colons": lambda path: path.replace(":", "%3A"),
    "escaped slashes": lambda path: "/" + path[1:].replace("/", "%2F"),
    "slashes escaped twice": lambda path: "/" + path[1:].replace("/", "%252f"),
    "capitals": str.upper,
    "a verb in capitals": lambda path: path[:-3] + path[-3:].upper(),
    "a slash behind": lambda path: path + "/",
    "doubled slashes": lambda path: path.replace("/", "//"),
    "dots": lambda path: path.replace("/", "/x/../"),
    "escaped dots": lambda path: path.replace("/", "/x/%2e%2e/"),
    "parameters": lambda path: "/".join(part + ";a=b" if part else part for part in path.split("/")),
    "an escaped query": lambda path: path + "%3Fa=b",
    "an escaped fragment": lambda path: path + "%23",
    "an escaped line end": lambda path: path[:-2] + "%0a" + path[-2:],
    "an escaped blank": lambda path: path + "%20",
    "backslashes": lambda path: path.replace("/", "%5C"),
    "a name of two segments": lambda path: path.replace("/free", "/x%2Ffree"),
    "a name with parameters": lambda path: path.replace("/free", "/free;a=b"),
}


@pytest.mark.parametrize("form", SENT)
@pytest.mark.parametrize("raw", [True, False])
async def test_a_call_under_a_disguised_path_is_metered_or_refused(form: str, raw: bool) -> None:
    checked = 0
    async with ledger() as book:

        async def ends(sent: str) -> str:
            app = Scripted(plain({"ok": True}))
            book.held.clear()
            scope = http_scope(path=unquote(sent))
            scope["raw_path"] = sent.encode() if raw else None
            answer = await ask(book.around(app, default_model="free"), dict(BODY), scope=scope)
            if app.scopes:
                return "metered" if book.held else "slipped by"
            assert 400 <= answer.status < 500, answer.body
            return "refused"

        for api in APIS:
            for suffix in api.suffixes:
                path = "/v1" + filled(suffix).replace("some-model", "free")
                if await ends(path) == "metered":
                    checked += 1
                    assert await ends(SENT[form](path)) in ("metered", "refused"), (api.name, path)
    assert checked > 15
