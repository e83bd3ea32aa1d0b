"""Signing in, staying signed in, and signing out."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.dashboard import Desk
from askii_middleware.dashboard.sessions import Sessions
from askii_middleware.errors import ConfigurationError
from askii_middleware.tracker import CostTracker

from .site import FORMS, PAGES, TOKEN, Clock, site


@pytest.mark.parametrize("path", PAGES)
async def test_a_stranger_is_sent_to_the_sign_in_page(path: str) -> None:
    async with site(signed_in=False) as made:
        answer = await made.get(path)
        assert (answer.status_code, answer.headers["location"], answer.text) == (303, "/askii/sign-in", "")


@pytest.mark.parametrize("path", FORMS)
async def test_a_stranger_changes_nothing(path: str) -> None:
    async with site(signed_in=False) as made:
        answer = await made.client.post(f"/askii{path}", data={"csrf": "0" * 64, "tenant": "acme"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/askii/sign-in")
        assert await made.tracker.keys.list() == []
        assert await made.tracker.tenant_states() == []


async def test_the_live_part_sends_the_whole_page_to_the_sign_in_page() -> None:
    async with site(signed_in=False) as made:
        answer = await made.get("/live", headers={"HX-Request": "true"})
        assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/askii/sign-in")


async def test_wrong_tokens_open_nothing_and_are_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "askii_middleware.dashboard")
    async with site(signed_in=False) as made:
        for token in (
            "",
            "wrong",
            TOKEN[:-1],
            TOKEN + "x",
            TOKEN.upper(),
            "\u00fc\ud800".encode(errors="replace").decode(),
        ):
            answer = await made.client.post("/askii/sign-in", data={"token": token})
            assert (answer.status_code, "set-cookie" in answer.headers) == (403, False)
            assert "This is not the admin token" in answer.text
        made.clock.now_s += 61
        await made.client.post("/askii/sign-in", data={"token": "wrong"})
    counts = [getattr(record, "askii_count", None) for record in caplog.records]
    assert counts == [1, 6]
    assert TOKEN not in caplog.text
    assert "wrong token" in caplog.text


async def test_tokens_and_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []

    def spy(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return bool(one == other)

    monkeypatch.setattr("askii_middleware.dashboard.sessions.hmac.compare_digest", spy)
    sessions = Sessions(TOKEN, session_s=60, clock=Clock())
    assert sessions.begin("x") is None
    session = sessions.begin(TOKEN)
    assert session is not None
    assert sessions.find(session.value) == session
    # Digests of one length, whatever was shown.
    assert [len(one) for one, _ in compared] == [32, 32, 64]


@pytest.mark.parametrize(
    ("base_url", "how", "secure"),
    [
        ("http://ledger.example", "auto", False),
        ("https://ledger.example", "auto", True),
        ("http://ledger.example", "always", True),
        ("https://ledger.example", "never", False),
    ],
)
async def test_the_cookie_is_for_this_site_and_no_script(base_url: str, how: Any, *, secure: bool) -> None:
    async with site(signed_in=False, base_url=base_url, cookie_secure=how, session_s=600) as made:
        answer = await made.client.post("/askii/sign-in", data={"token": TOKEN})
        name, _, flags = answer.headers["set-cookie"].partition(";")
        told = {flag.strip().lower() for flag in flags.split(";")}
        assert name.startswith("askii_session=")
        assert {"httponly", "samesite=strict", "path=/askii", "max-age=600"} <= told
        assert ("secure" in told) is secure
        assert TOKEN not in answer.headers["set-cookie"]


async def test_a_session_ends_with_its_time_and_with_the_sign_out() -> None:
    async with site(session_s=600) as made:
        made.clock.now_s += 599
        assert (await made.get("/")).status_code == 200
        made.clock.now_s += 1
        assert (await made.get("/")).status_code == 303
        await made.sign_in()
        answer = await made.post("/sign-out")
        assert answer.headers["location"] == "/askii/sign-in"
        assert (await made.get("/")).status_code == 303


def test_workers_know_each_others_sessions_until_the_token_changes() -> None:
    clock = Clock()
    one, other = (Sessions(TOKEN, session_s=60, clock=clock) for _ in range(2))
    session = one.begin(TOKEN)
    assert session is not None
    assert other.find(session.value) == session
    assert Sessions(TOKEN + "2", session_s=60, clock=clock).find(session.value) is None
    assert Sessions(TOKEN, session_s=10, clock=clock).find(session.value) is None  # a shorter setting counts at once


def test_no_two_sessions_are_the_same() -> None:
    sessions = Sessions(TOKEN, session_s=60, clock=Clock())
    begun = [sessions.begin(TOKEN) for _ in range(100)]
    assert len({session.value for session in begun if session}) == 100
    assert len({session.csrf for session in begun if session}) == 100


@given(st.text(max_size=300), st.integers(0, 10**12))
def test_no_invented_cookie_is_a_session(text: str, expires: int) -> None:
    sessions = Sessions(TOKEN, session_s=60, clock=Clock())
    session = sessions.begin(TOKEN)
    assert session is not None
    _, nonce, signature = session.value.split(".")
    for value in (text, f"{expires}.{nonce}.{signature}", f"{session.value}{text}", f"{text}{session.value}"):
        assert sessions.find(value) is None or value == session.value


def test_a_token_that_can_be_guessed_is_refused_at_the_start() -> None:
    tracker = CostTracker(store="memory://")
    for options in ({"admin_token": "short"}, {"cookie_secure": "maybe"}, {"session_s": 0}):
        with pytest.raises(ConfigurationError, match="api\\."):
            Desk(tracker, **{"admin_token": TOKEN, **options})  # type: ignore[arg-type]
