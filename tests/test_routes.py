"""Which requests are metered."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.providers import APIS
from askii_middleware.providers.base import Api
from askii_middleware.providers.free import is_free
from askii_middleware.routes import Routes, mints_credentials, route_path

CHAT = "/v1/chat/completions"


def name(path: str, method: str = "POST", **options: Any) -> str | None:
    apis = Routes(**options).apis(method, route_path({"path": path}))
    return apis[0].name if apis else None


@pytest.mark.parametrize(
    ("path", "api"),
    [
        ("/chat/completions", "openai.chat"),
        ("/v1/chat/completions", "openai.chat"),
        ("/v1/chat/completions/", "openai.chat"),
        ("/a/b/c/openai/v1/chat/completions", "openai.chat"),
        ("/v1/completions", "openai.completions"),
        ("/v1/responses", "openai.responses"),
        ("/v1/responses/compact", "openai.responses.compact"),
        ("/v1/embeddings", "openai.embeddings"),
        ("/v1/messages", "anthropic.messages"),
        # What somebody further on may read as the same:
        ("/V1/Chat/Completions", "openai.chat"),
        ("//v1//chat///completions", "openai.chat"),
        ("/v1/chat/./completions", "openai.chat"),
        ("/v1/chat/x/../completions", "openai.chat"),
        ("/v1/chat/completions/.", "openai.chat"),
        ("/v1/MESSAGES//", "anthropic.messages"),
        ("/v1/me\u017f\u017fages", "anthropic.messages"),
        ("/v1/chat;v=1/completions;x=/y", None),
        ("/v1/chat;v=1/completions;x=y", "openai.chat"),
        ("/v1/chat/completi%6fns", "openai.chat"),  # escaped twice: the server has undone one of them
        ("/v1/chat%252Fcompletions", "openai.chat"),
        ("/v1/x/%2e%2e/chat/completions", "openai.chat"),
        ("/v1/chat/completions?x=1", "openai.chat"),  # an escaped question mark
        ("/v1/chat/completions#x", "openai.chat"),
        ("/v1/chat/completions%3Fx", "openai.chat"),
        ("/v1/chat/comple\ntions", "openai.chat"),  # which URL parsers drop
        ("/v1/chat/completions ", "openai.chat"),
        ("/v1/chat/completions\0", "openai.chat"),
        ("/v1\\chat\\completions", "openai.chat"),
        ("/v1/chat/completions/;x", "openai.chat"),
    ],
)
def test_a_path_that_ends_like_an_api_belongs_to_it(path: str, api: str | None) -> None:
    assert name(path) == api


@pytest.mark.parametrize(
    "path",
    [
        *("/", "", "/v1", "/v1/models", "/v1/messages/count_tokens", "/v1/responses/input_tokens", "/v1/responses/r1"),
        *(
            "/v1/chatter",
            "/xchat/completionsx",
            "/messages.html",
            "/v1/mymessages",
            "/v1/chat/completions/c1/messages2",
        ),
    ],
)
def test_another_path_belongs_to_none(path: str) -> None:
    assert name(path) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
def test_only_post_is_metered(method: str) -> None:
    assert name(CHAT, method) is None


@pytest.mark.parametrize("method", ["post", "Post"])
def test_post_in_other_letters_is_metered_because_a_client_further_on_may_write_it_in_capitals(method: str) -> None:
    assert name(CHAT, method) == "openai.chat"


def test_patterns_choose_what_is_metered() -> None:
    assert name(CHAT, include=["/v1/*"]) == "openai.chat"
    assert name("/v2/chat/completions", include=["/v1/*"]) is None
    assert name("/internal/messages", exclude=["/internal/*"]) is None
    assert name(CHAT, exclude=["/internal/*"]) == "openai.chat"
    assert name("/internal/messages", include=["/*"], exclude=["/internal/*"]) is None
    assert name("/Internal/messages", exclude=["/internal/*"]) == "anthropic.messages"


@pytest.mark.parametrize("path", ["/internal/../v1/chat/completions", "/internal/x/..//..//v1//chat/completions"])
def test_no_path_passes_under_the_rules_of_another(path: str) -> None:
    assert name(path, exclude=["/internal/*"]) == "openai.chat"
    assert Routes(unmetered="deny", exempt=["/internal/*"]).denies("POST", route_path({"path": path}))


def test_what_is_denied() -> None:
    routes = Routes(unmetered="deny", exempt=["/healthz", "/admin/*"])
    assert routes.denies("POST", "/v1/files")
    assert routes.denies("DELETE", "/v1/files/1")
    assert routes.denies("PUT", "/healthz2")
    for method in ("GET", "HEAD", "OPTIONS"):
        assert not routes.denies(method, "/v1/files")
    assert not routes.denies("POST", "/healthz")
    assert not routes.denies("POST", "/admin/users/1")
    assert not Routes().denies("POST", "/v1/files")


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/videos?/tokenize", "/v1/videos%3F/v1/models", "/v1/videos#/x:countTokens"),
        *("/internal/%2e%2e/v1/videos", "/v1/videos%253F/api/show", "/internal\\..\\v1\\videos"),
    ],
)
def test_a_path_in_disguise_is_denied_and_watched_as_what_it_may_be_read_as(path: str) -> None:
    routes = Routes(unmetered="deny", exempt=["/internal/*"])
    assert routes.denies("POST", path)
    assert routes.watches("POST", path)


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/v1/x", "", "/v1/x"),
        ("/api/v1/x", "/api", "/v1/x"),
        ("/v1/x", "/api", "/v1/x"),  # servers and frameworks that strip the prefix themselves
        ("/api", "/api", "/"),
        ("/apiary/x", "/api", "/apiary/x"),
        ("/api/", "/api", "/"),
        ("//api//x", "/api", "/x"),
        ("/x/../api/y", "/api", "/y"),
        ("/..", "", "/"),
        ("//", "", "/"),
        ("/a/", "", "/a/"),
    ],
)
def test_the_path_below_the_mount(path: str, root: str, below: str) -> None:
    assert route_path({"path": path, "root_path": root}) == below


def test_a_scope_without_a_root_path_is_mounted_nowhere() -> None:
    assert route_path({"path": "/v1/x"}) == "/v1/x"
    assert route_path({"path": "/v1/x", "root_path": None}) == "/v1/x"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/", "/"),
        ("", "/"),
        ("//v1", "/v1"),
        ("/v1/x/y/z", "/v1/x/y"),
        ("/V1/Files/", "/v1/files"),
        ("/v1/files/file-8XbpRcHkFfD2tqh1n4Vx", "/v1/files/{id}"),
        ("/v1/threads/thread_abc123def/runs", "/v1/threads/{id}"),
        ("/users/42/chat", "/users/{id}/chat"),
        ("/0b34f1c2-6a5e-4f0e-9d0f-3f3f0d6c8a11", "/{id}"),
        ("/deadbeef0123", "/{id}"),
        ("/v1beta1/models/gemini-2.5-pro:predictLongRunning", "/v1beta1/models/gemini-2.5-pro:predictlongrunning"[:64]),
        ("/v1/models/ft:gpt-4o-2024-08-06:acme::9xyz", "/v1/models/ft:{id}"),
        ("/a%20b/é/x@y", "/{id}/{id}/{id}"),
        ("/" + "x" * 100, "/{id}"),
        ("/" + "/".join("abcdefghijklmnopqrstuvwx" for _ in range(9)), ("/" + "abcdefghijklmnopqrstuvwx/" * 3)[:64]),
    ],
)
def test_a_path_class_says_what_route_it_is_and_not_whose(path: str, label: str) -> None:
    assert Routes.path_class(path) == label


@given(st.text(max_size=30), st.sampled_from(["POST", "GET", "post"]))
def test_no_path_raises(path: str, method: str) -> None:
    routes = Routes(include=["/[a-"], exclude=["*]*"], unmetered="deny")
    routes.apis(method, path)
    routes.denies(method, path)
    assert 1 <= len(routes.path_class(path)) <= 64
    routes.watches(method, path)


# Disguises ------------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Every letter escaped, as it is left when the server has undone one of two escapings."""
    return "".join(f"%{ord(character):02x}" if character.isalnum() else character for character in text)


DISGUISES: dict[str, Callable[[str], str]] = {
    "as it is": lambda path: path,
    "capitals": str.upper,
    "small letters": str.lower,
    "a slash behind": lambda path: path + "/",
    "slashes": lambda path: path.replace("/", "//"),
    "dots": lambda path: path.replace("/", "/x/../"),
    "parameters": lambda path: "/".join(part + ";a=b" if part else part for part in path.split("/")),
    "escaped letters": escaped,
    "letters escaped twice": lambda path: escaped(path).replace("%", "%25"),
    "escaped colons": lambda path: path.replace(":", "%3A"),
    "a query": lambda path: path + "?alt=sse",
    "an escaped query": lambda path: path + "%3Falt=sse",
    "a fragment": lambda path: path + "#x",
    "a line end": lambda path: path[:-2] + "\r\n" + path[-2:],
    "a blank behind": lambda path: path + " ",
    "backslashes": lambda path: path.replace("/", "\\"),
    "capitals, escaped, with parameters": lambda path: escaped(path.upper()) + ";x",
}


def filled(template: str) -> str:
    """A path ending with names in its places."""
    return re.sub(r"\{[a-z]+\}", "some-model", template)


PATHS = sorted({(api.name, suffix) for api in APIS for suffix in api.suffixes})


@pytest.mark.parametrize("disguise", DISGUISES)
@pytest.mark.parametrize("prefix", ["", "/v1", "/a/b"])
def test_no_disguise_takes_a_call_out_of_its_api(disguise: str, prefix: str) -> None:
    for api, suffix in PATHS:
        path = DISGUISES[disguise](prefix + filled(suffix))
        found = Routes().apis("POST", route_path({"path": path}))
        assert api in [each.name for each in found], path


def test_each_api_of_a_path_comes_once_and_those_it_belongs_to_as_it_stands_come_first() -> None:
    for api, suffix in PATHS:
        found: tuple[Api, ...] = Routes().apis("POST", "/v1" + filled(suffix))
        assert len({id(each) for each in found}) == len(found)
        assert api in [each.name for each in found]
    azure, *_ = Routes().apis("POST", "/openai/deployments/x/chat/completions")
    assert azure.name == "azure.chat"


def test_a_path_in_disguise_is_not_excluded_by_what_it_only_seems_to_be() -> None:
    assert name("/internal/%2e%2e/v1/chat/completions", exclude=["/internal/*"]) == "openai.chat"
    assert name("/internal/messages;x", exclude=["/internal/*"]) is None
    assert name("/internal/messages/", exclude=["/internal/*"]) is None


def test_a_path_in_disguise_is_included_as_what_it_may_be_read_as() -> None:
    assert name("/V1/Chat/Completions", include=["/v1/*"]) == "openai.chat"
    assert name("/%76%31/chat/completions", include=["/v1/*"]) == "openai.chat"
    assert name("/v2/chat/completions;/v1/", include=["/v1/*"]) is None


# Free requests --------------------------------------------------------------------------------------------------------

FREE = [
    *("/v1/messages/count_tokens", "/v1/responses/input_tokens", "/v1/responses/resp_1/cancel", "/v1/models"),
    *("/v1/messages/batches/b1/cancel", "/v1/batches/b1/cancel", "/model/a.b-c%2Fd/count-tokens", "/v1/tokenize"),
    *("/v1beta/models/gemini-2.5-pro:countTokens", "/v1/p/l/publishers/google/models/g:computeTokens", "/detokenize"),
    *("/api/show", "/v1/messages/count_tokens/", "/v1/batch/jobs/j1/cancel", "/v1beta/batches/b1:cancel"),
    "/v1beta/interactions/i1/cancel",
]


@pytest.mark.parametrize("path", FREE)
def test_free_requests_of_metered_apis_pass_and_are_no_bypass(path: str) -> None:
    assert is_free(path)
    routes = Routes(unmetered="deny")
    assert not routes.denies("POST", path)
    assert not routes.watches("POST", path)
    assert routes.apis("POST", path) == ()


@pytest.mark.parametrize(
    "path",
    [
        *("", "/", "/v1/files", "/v1/count_tokens", "/v1/messages/count_tokens2", "/v1/messages/batches/b1/cancelled"),
        *(":countTokens", "/:countTokens", "/v1/models/x", "/model//count-tokens", "/batches//cancel", "/v1/show"),
        *("/v1/messages/COUNT_TOKENS", "/v1/messages/count_tokens;/x"),
    ],
)
def test_nothing_else_is_free(path: str) -> None:
    assert not is_free(path)
    assert Routes(unmetered="deny").denies("POST", path)


def test_no_metered_path_is_free() -> None:
    assert not [suffix for _, suffix in PATHS if is_free("/v1" + filled(suffix))]


def test_what_is_watched() -> None:
    routes = Routes(exclude=["/internal/*"], exempt=["/healthz"])
    assert routes.watches("POST", "/v1/foo")
    assert routes.watches("post", "/v1/foo")
    assert not routes.watches("GET", "/v1/foo")
    assert not routes.watches("POST", "/internal/messages")
    assert not routes.watches("POST", "/healthz")


@given(st.text(max_size=40))
def test_no_path_raises_when_it_is_asked_whether_it_is_free(path: str) -> None:
    is_free(path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/realtime/client_secrets",
        "/v1/realtime/sessions/",
        "/V1/Realtime/Calls",
        "/v1beta/auth_tokens",
        "/v1alpha//auth_tokens",
    ],
)
def test_routes_that_hand_out_keys_are_known_in_every_form(path: str) -> None:
    assert mints_credentials(path)
    assert not mints_credentials("/v1/files")
