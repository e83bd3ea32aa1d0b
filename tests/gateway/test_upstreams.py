"""Paths, credentials, headers and routing: the rules at the head of `gateway_upstreams.py`, without a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.errors import ConfigurationError
from askii_middleware.gateway_upstreams import BadTargetError, Route, Router, Upstream, response_headers


def route(url: str = "https://host/v1", **fields: object) -> Route:
    return Route(Upstream(name="up", url=url, **fields))  # type: ignore[arg-type]


def headers_of(upstream: Route, *raw: tuple[bytes, bytes]) -> dict[str, str]:
    sent = upstream.request_headers(raw)
    assert len({name for name, _ in sent}) == len(sent)
    return dict(sent)


@pytest.mark.parametrize(
    ("url", "path", "joined"),
    [
        ("https://host/v1", "/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/v1/", "/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/v1", "/chat/completions", "https://host/v1/chat/completions"),
        ("https://host", "/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host/", "/v1/chat/completions", "https://host/v1/chat/completions"),
        ("https://host:8443/api/v1", "/v1/models", "https://host:8443/api/v1/models"),
        ("https://host/openai/v1", "/openai/v1/responses", "https://host/openai/v1/responses"),
        ("https://host/openai/v1", "/openai/responses", "https://host/openai/v1/openai/responses"),
        ("https://host/v1beta", "/v1beta/models/m:generateContent", "https://host/v1beta/models/m:generateContent"),
        ("https://host/v1", "/v1beta/models", "https://host/v1/v1beta/models"),
        ("https://host/v1", "/v10/models", "https://host/v1/v10/models"),
        ("https://host/v1", "/v1", "https://host/v1"),
        ("https://host/v1", "/v1/", "https://host/v1/"),
        ("https://host/v1", "/v1/v1/models", "https://host/v1/v1/models"),
        ("https://host/openai", "/openai/deployments/d/x", "https://host/openai/openai/deployments/d/x"),
        ("http://[::1]:8000/v1", "/v1/models", "http://[::1]:8000/v1/models"),
    ],
)
def test_a_version_segment_that_url_and_path_share_is_written_once(url: str, path: str, joined: str) -> None:
    assert route(url).target(path.encode(), b"") == joined


@given(st.lists(st.sampled_from(["v1", "v2", "v1beta", "api", "chat", "models"]), max_size=4))
def test_a_path_never_doubles_the_version(segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    joined = route("https://host/api/v1").target(path.encode(), b"")
    rest = joined.removeprefix("https://host/api/v1")
    assert path.endswith(rest)
    assert path.removesuffix(rest) in {"", "/v1", "/api/v1"}
    assert segments[:1] != ["v1"] or rest == path.removeprefix("/v1")


@pytest.mark.parametrize(
    ("path", "query", "joined"),
    [
        (b"/v1/files/a%2Fb%20c", b"", "https://host/v1/files/a%2Fb%20c"),
        (b"/v1/x", b"a=%7e&b=c+d&a=%2B", "https://host/v1/x?a=%7e&b=c+d&a=%2B"),
        (b"/v1//x;p=@1:2", b"?", "https://host/v1//x;p=@1:2??"),
        (b"/v1/.well-known/a..b/...", b"..", "https://host/v1/.well-known/a..b/...?.."),
        (b"/v1/caf\xc3\xa9#top", b"q=\xff#", "https://host/v1/caf%C3%A9%23top?q=%FF%23"),
    ],
)
def test_path_and_query_stay_as_they_came(path: bytes, query: bytes, joined: str) -> None:
    assert route().target(path, query) == joined


@pytest.mark.parametrize(
    "path",
    [
        *(b"/v1/../admin", b"/v1/x/..", b"/.", b"/v1/%2e%2E/x", b"/v1/.%2e/x", b"/v1/%2E/x"),
        # Only an upstream that decodes first, takes a backslash for a slash, or cuts parameters off, sees these.
        *(b"/v1/x%2f..%2F..%2fadmin", b"/v1/%2e%2e%2fadmin", b"/v1/..\\admin", b"/v1/..%5Cadmin", b"/v1/..;a=b/admin"),
    ],
)
def test_dot_segments_are_refused(path: bytes) -> None:
    with pytest.raises(BadTargetError, match="segments"):
        route().target(path, b"")


@pytest.mark.parametrize("path", [b"*", b"http://elsewhere/v1/models", b"@elsewhere/v1"])
def test_a_target_that_is_no_path_is_refused(path: bytes) -> None:
    with pytest.raises(BadTargetError, match="path"):
        route("https://host").target(path, b"")


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("host/v1", "https://host/v1"),
        ("ftp://host", "https://host/v1"),
        ("https://", "https://host/v1"),
        ("https://host:99999", "https://host/v1"),
        ("https://ho st/v1", "https://host/v1"),
        ("https://user:secret@host/v1", "api_key"),
        ("https://host/v1?api-version=1", "query"),
        ("https://host/v1#x", "fragment"),
    ],
)
def test_an_url_that_could_never_work_fails_at_start_without_being_repeated(url: str, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match) as caught:
        route(url)
    assert "upstreams.up.url" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_keys_and_headers_never_show_in_a_repr() -> None:
    upstream = Upstream(name="up", url="https://host/v1", api_key="sk-secret", headers={"x-extra": "hidden"})
    assert "secret" not in repr(upstream)
    assert "hidden" not in repr(upstream)


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "ключ", "a\0b"])
def test_a_key_that_no_header_can_carry_fails_at_start(value: str) -> None:
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        route(api_key=value)


@pytest.mark.parametrize(
    ("fields", "header", "value"),
    [
        ({}, "authorization", "Bearer sk-up"),
        ({"provider": "openai"}, "authorization", "Bearer sk-up"),
        ({"provider": "mistral"}, "authorization", "Bearer sk-up"),
        ({"provider": "anthropic"}, "x-api-key", "sk-up"),
        ({"provider": "azure"}, "api-key", "sk-up"),
        ({"provider": "google"}, "x-goog-api-key", "sk-up"),
        ({"provider": "anthropic", "auth_header": "Authorization"}, "authorization", "Bearer sk-up"),
        ({"auth_header": "X-Token"}, "x-token", "sk-up"),
    ],
)
def test_the_upstreams_own_key_replaces_whatever_credentials_came(
    fields: dict[str, str], header: str, value: str
) -> None:
    sent = headers_of(
        route(api_key="sk-up", **fields),
        (b"authorization", b"Bearer sk-askii-1"),
        (b"x-api-key", b"sk-askii-1"),
        (b"api-key", b"foreign"),
        (b"x-goog-api-key", b"foreign"),
        (b"x-token", b"foreign"),
        (b"anthropic-version", b"2023-06-01"),
    )
    expected = {header: value, "anthropic-version": "2023-06-01", "accept-encoding": "identity"}
    assert sent == expected | ({} if header == "x-token" else {"x-token": "foreign"})


def test_without_a_key_of_the_upstream_the_clients_pass_but_never_one_of_ours() -> None:
    sent = headers_of(
        route(),
        (b"authorization", b"Bearer sk-client"),
        (b"x-api-key", b"sk-askii-abc"),
        (b"api-key", b"k"),
        (b"x-goog-api-key", b" sk-askii-abc"),
    )
    assert sent == {"authorization": "Bearer sk-client", "api-key": "k", "accept-encoding": "identity"}
    for ours in (b"Bearer sk-askii-abc", b"bearer  sk-askii-abc", b"sk-askii-abc"):
        assert headers_of(route(), (b"authorization", ours)) == {"accept-encoding": "identity"}


def test_headers_about_one_connection_are_left_out_and_the_rest_stays_in_order() -> None:
    raw = (
        (b"host", b"gateway"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"connection", b"Keep-Alive, X-Hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"transfer-encoding", b"chunked"),
        (b"content-length", b"3"),
        (b"upgrade", b"h2c"),
        (b"expect", b"100-continue"),
        (b"proxy-authorization", b"Basic x"),
        (b"accept-encoding", b"gzip"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"x-utf8", "é".encode()),
        (b"x-latin", b"\xe9"),
    )
    assert route().request_headers(raw) == [
        ("x-forwarded-for", "10.0.0.1"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("x-utf8", "é"),
        ("x-latin", "é"),
        ("accept-encoding", "identity"),
    ]


def test_configured_headers_stand_in_for_the_clients() -> None:
    upstream = route(headers={"OpenAI-Organization": "ours", "Accept-Encoding": "br"})
    sent = headers_of(upstream, (b"openai-organization", b"theirs"), (b"accept-encoding", b"gzip"))
    assert sent == {"openai-organization": "ours", "accept-encoding": "br"}


def test_the_clients_accept_encoding_can_be_passed_on() -> None:
    upstream = Route(Upstream(name="up", url="https://host"), accept_encoding=None)
    assert headers_of(upstream, (b"accept-encoding", b"gzip")) == {"accept-encoding": "gzip"}


def test_an_answers_headers_keep_order_doubles_and_unknown_ones() -> None:
    raw = (
        (b"Content-Type", b"text/plain"),
        (b"Set-Cookie", b"a=1"),
        (b"Connection", b"close, X-Internal"),
        (b"X-Internal", b"1"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Set-Cookie", b"b=2"),
        (b"Content-Length", b"5"),
    )
    kept = [(b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    assert response_headers(raw, keep_length=True) == [*kept, (b"content-length", b"5")]
    assert response_headers(raw, keep_length=False) == kept


def picked(router: Router, model: str | None) -> str | None:
    chosen = router.pick(model)
    return None if chosen is None else chosen.name


def router(**models: tuple[str, ...]) -> Router:
    return Router(Route(Upstream(name=name, url="https://host", models=patterns)) for name, patterns in models.items())


def test_the_first_matching_pattern_wins_and_an_upstream_without_patterns_takes_the_rest() -> None:
    table = router(rest=(), openai=("gpt-*", "o[0-9]*"), claude=("claude-*",), late=("gpt-4o",))
    names = {"gpt-4o": "openai", "GPT-4o": "openai", "o3": "openai", "claude-x": "claude", "llama": "rest"}
    assert {model: picked(table, model) for model in names} == names
    assert {model: picked(table, model) for model in names} == names  # once more, from memory
    assert picked(table, "my-gpt-4o") == "rest"
    assert picked(table, None) == "rest"


def test_where_every_upstream_has_patterns_other_models_and_none_at_all_find_nothing() -> None:
    table = router(openai=("gpt-*",), claude=("claude-*",))
    assert picked(table, "llama") is None
    assert picked(table, None) is None


def test_a_single_upstream_takes_requests_without_a_model_even_with_patterns() -> None:
    table = router(openai=("gpt-*",))
    assert picked(table, None) == "openai"
    assert picked(table, "claude-x") is None
    assert table.needs_model
    assert not router(openai=()).needs_model


def test_models_that_clients_invent_do_not_fill_the_memory() -> None:
    table = router(openai=("gpt-*",), rest=())
    for number in range(3000):
        assert picked(table, f"gpt-{number}") == "openai"
    table.pick("x" * 300)
    assert len(table._memo) == 1024


def test_contradictory_upstreams_fail_at_start() -> None:
    with pytest.raises(ConfigurationError, match="at least one upstream"):
        Router([])
    with pytest.raises(ConfigurationError, match="same name: a, a"):
        Router(Route(Upstream(name="a", url="https://host")) for _ in range(2))
    with pytest.raises(ConfigurationError, match="empty pattern"):
        route(models=("",))
