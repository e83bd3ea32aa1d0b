"""Where the API is mounted: in applications, below prefixes, in the gateway, with and without lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi
import httpx
import litestar
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from askii_middleware.errors import ConfigurationError
from askii_middleware.serving import gateway
from askii_middleware.settings import Settings
from askii_middleware.tracker import CostTracker

from ..support.servers import serving
from ..support.service import Clock, make_tracker, url_of
from .support import ADMIN, ADMIN_HEADERS

UPSTREAMS = {"openai": {"url": "http://127.0.0.1:9/v1"}}


@asynccontextmanager
async def asking(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=ADMIN_HEADERS) as client:
        yield client


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """With lifespan, which the gateway's own client needs."""
    async with serving(app, lifespan="on") as url, httpx.AsyncClient(base_url=url, headers=ADMIN_HEADERS) as client:
        yield client


def in_fastapi(tracker: CostTracker) -> Any:
    app = fastapi.FastAPI()
    app.mount("/billing", tracker.api(ADMIN, dashboard=False))
    return app


def in_litestar(tracker: CostTracker, *, dashboard: bool = False) -> Any:
    return litestar.Litestar(
        [litestar.asgi("/billing", is_mount=True, copy_scope=True)(tracker.api(ADMIN, dashboard=dashboard))],
        logging_config=None,  # it would set the level of the process's root logger
    )


def in_starlette(tracker: CostTracker) -> Any:
    inner = Starlette(routes=[Mount("/billing", tracker.api(ADMIN, dashboard=False))])
    return Starlette(routes=[Mount("/outer", inner)])


@pytest.mark.parametrize(
    ("mounted", "prefix"),
    [(in_fastapi, "/billing"), (in_litestar, "/billing"), (in_starlette, "/outer/billing")],
)
async def test_it_works_where_it_is_mounted_and_without_lifespan(mounted: Any, prefix: str) -> None:
    tracker = make_tracker("memory://", clock=Clock())
    async with asking(mounted(tracker)) as client:
        made = await client.post(f"{prefix}/api/keys", json={"tenant": "acme", "id": "a.b"})
        assert made.status_code == 201, made.text
        shown = await client.get(f"{prefix}/api/keys/a.b", headers={"authorization": f"Bearer {made.json()['secret']}"})
        assert shown.json()["tenant"] == "acme"
        assert (await client.get(f"{prefix}/openapi.json")).json()["openapi"] == "3.1.0"
        assert (await client.get(f"{prefix}/nothing")).json()["error"]["code"] == "not_found"
        assert (await client.get("/api/keys")).status_code == 404
    await tracker.store.close()


async def test_the_dashboards_links_know_where_litestar_has_mounted_it() -> None:
    tracker = make_tracker("memory://", clock=Clock())
    async with asking(in_litestar(tracker, dashboard=True)) as client:
        for path in ("/billing/", "http://api//billing/", "http://api///billing/"):  # Litestar takes `//` for `/`
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/billing/sign-in")
    await tracker.stop()


async def test_below_a_servers_root_path_it_works_too() -> None:
    tracker = make_tracker("memory://", clock=Clock())
    async with (
        serving(tracker.api(ADMIN, dashboard=False), root_path="/behind/proxy") as url,
        httpx.AsyncClient(base_url=url, headers=ADMIN_HEADERS) as client,
    ):
        assert (await client.get("/api/keys")).json() == {"keys": [], "next": None}


async def test_served_alone_it_starts_and_stops_its_tracker() -> None:
    tracker = make_tracker("memory://", clock=Clock())
    async with serving(tracker.api(ADMIN, dashboard=False), lifespan="on"):
        assert tracker.loop is not None
    assert tracker.loop is None


async def test_the_dashboard_comes_with_the_admin_token() -> None:
    tracker = make_tracker("memory://", clock=Clock())
    async with asking(tracker.api(ADMIN)) as client:
        assert (await client.get("/")).status_code in (200, 303)
        assert (await client.get("/api/keys")).json() == {"keys": [], "next": None}
        assert (await client.get("/api/nothing")).status_code == 404
    async with asking(tracker.api()) as client:
        assert (await client.get("/")).status_code == 401
        assert (await client.get("/api/keys")).status_code == 401
    await tracker.stop()
    await tracker.store.close()


# The gateway ----------------------------------------------------------------------------------------------------------


def configured(tmp_path: Path, **api: Any) -> Settings:
    return Settings(store=url_of("sqlite", tmp_path), upstreams=UPSTREAMS, api=api)


async def test_the_gateway_serves_it_before_the_middleware(tmp_path: Path) -> None:
    settings = configured(tmp_path, admin_token=ADMIN)
    tracker = CostTracker.from_settings(settings)
    async with served(gateway(settings, tracker)) as client:
        made = await client.post("/askii/api/keys", json={"tenant": "acme"})
        assert made.status_code == 201, made.text
        assert (await client.get("/askii/openapi.json")).status_code == 200
        assert (await client.post("/askii/api/v1/chat/completions", json={})).json()["error"]["code"] == "not_found"
        for path in ("/askiix/api/keys", "/api/keys", "/askii/../api/keys"):
            assert (await client.get(path)).status_code != 200
        assert (await client.get("/healthz")).status_code == 200


async def test_without_an_admin_token_the_gateway_has_no_api(tmp_path: Path) -> None:
    settings = configured(tmp_path)
    tracker = CostTracker.from_settings(settings)
    async with served(gateway(settings, tracker)) as client:
        assert (await client.get("/askii/openapi.json")).status_code != 200


@pytest.mark.parametrize(
    "path", ["/healthz", "/metrics", "/v1", "/v1/billing", "/openai", "/hooks", "/hooks/lago/x", "/metrics/x"]
)
async def test_a_path_that_hides_another_is_refused(path: str, tmp_path: Path) -> None:
    settings = Settings(
        store=url_of("sqlite", tmp_path),
        upstreams=UPSTREAMS,
        api={"admin_token": ADMIN, "path": path},
        lago_webhooks={"path": "/hooks/lago", "hmac_key": "k"},
    )
    with pytest.raises(ConfigurationError, match=r"api\.path"):
        gateway(settings, CostTracker.from_settings(settings))


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"admin_token": "short"}, "api.admin_token"),
        ({"admin_token": "with spaces in the middle"}, "api.admin_token"),
        ({"admin_token": "env:ASKII_TEST_UNSET_TOKEN"}, "api.admin_token"),
        ({"path": "askii"}, "api.path"),
        ({"path": "/"}, "api.path"),
        ({"path": "/askii/"}, "api.path"),
        ({"path": "/as kii"}, "api.path"),
        ({"session_s": 0}, "api.session_s"),
        ({"cookie_secure": True}, "api.cookie_secure"),
        ({"admin": "x"}, "api.admin"),
    ],
)
def test_a_wrong_setting_is_named_and_no_secret_shown(table: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings(api=table)
    assert str(caught.value).startswith(f"{named}: ")
    assert "with spaces in the middle" not in str(caught.value)


def test_the_admin_token_may_stand_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASKII_TEST_TOKEN", ADMIN)
    (tmp_path / "token").write_text(f"{ADMIN}\n")
    for place in ("env:ASKII_TEST_TOKEN", f"file:{tmp_path / 'token'}"):
        settings = Settings(api={"admin_token": place})
        assert settings.api.admin_token is not None
        assert settings.api.admin_token.get_secret_value() == ADMIN
        assert ADMIN not in repr(settings)
    assert (Settings().api.admin_token, Settings().api.path) == (None, "/askii")
