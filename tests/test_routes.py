"""Which requests are metered."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.routes import Routes, route_path

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
    ],
)
def test_a_path_that_ends_like_an_api_belongs_to_it(path: str, api: str) -> None:
    assert name(path) == api


@pytest.mark.parametrize(
    "path",
    [
        *("/", "", "/v1", "/v1/models", "/v1/messages/count_tokens", "/v1/responses/input_tokens", "/v1/responses/r1"),
        *("/v1/chat", "/xchat/completionsx", "/messages.html", "/v1/mymessages", "/v1/chat/completions/c1/messages2"),
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
    [("/", "/"), ("", "/"), ("/v1/x/y", "/v1"), ("//v1", "/v1"), ("/" + "x" * 100, "/" + "x" * 64)],
)
def test_a_path_class_is_short(path: str, label: str) -> None:
    assert Routes.path_class(path) == label


@given(st.text(max_size=30), st.sampled_from(["POST", "GET", "post"]))
def test_no_path_raises(path: str, method: str) -> None:
    routes = Routes(include=["/[a-"], exclude=["*]*"], unmetered="deny")
    routes.apis(method, path)
    routes.denies(method, path)
    assert len(routes.path_class(path)) <= 65
