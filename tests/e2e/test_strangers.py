"""What `askii serve` does for callers that nobody knows: nothing with a key of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from .calls import MESSAGES
from .clients import http_client
from .gateways import secret_of, serve, write_config
from .upstreams import Watched

UNMETERED = (("GET", "/v1/files"), ("POST", "/v1/uploads"), ("DELETE", "/v1/files/1"))
CALL = {"model": "tiny", "messages": MESSAGES, "max_tokens": 5}


async def test_the_upstreams_key_serves_known_callers_only(simulated: tuple[str, Watched], tmp_path: Path) -> None:
    write_config(tmp_path, {"up": (f"{simulated[0]}/v1", ["*"])}, budgets={"acme": "1"})
    with serve(tmp_path) as (url, _):
        async with http_client() as client:
            before = len(simulated[1].seen)
            for headers in ({}, {"x-api-key": "sk-askii-invented"}, {"authorization": "Bearer sk-foreign"}):
                for method, path in UNMETERED:
                    got = await client.request(method, url + path, headers=headers)
                    assert (got.status_code, got.json()["error"]["code"]) == (401, "unauthorized")
            assert len(simulated[1].seen) == before
            before = len(simulated[1].seen)
            known = {"x-api-key": secret_of("acme")}
            got = await client.post(f"{url}/v1/realtime/client_secrets", json={}, headers=known)
            assert (got.status_code, got.json()["error"]["code"]) == (403, "route_mints_credentials")
            assert len(simulated[1].seen) == before
            await client.get(f"{url}/v1/files", headers=known)
            assert simulated[1].seen[-1].headers[b"authorization"] == b"Bearer key-of-up"
            assert (await client.get(f"{url}/healthz")).status_code == 200


async def test_a_caller_with_a_key_of_its_own_passes_where_the_gateway_has_none(
    simulated: tuple[str, Watched], tmp_path: Path
) -> None:
    with serve(tmp_path, "--upstream", f"{simulated[0]}/v1") as (url, _):
        async with http_client() as client:
            await client.get(f"{url}/v1/files", headers={"authorization": "Bearer sk-own"})
    assert simulated[1].seen[-1].headers[b"authorization"] == b"Bearer sk-own"


@pytest.mark.parametrize("workers", [1, 2])
async def test_no_header_makes_a_caller_a_trusted_proxy(
    workers: int, simulated: tuple[str, Watched], tmp_path: Path
) -> None:
    identity = '[identity]\nsources = ["header:x-tenant-id"]\ntrusted_proxies = ["10.0.0.0/8"]'
    write_config(tmp_path, {"up": (f"{simulated[0]}/v1", ["*"])}, budgets={"acme": "1"}, tables=identity)
    forged = {"x-tenant-id": "acme", "x-forwarded-for": "10.1.2.3", "forwarded": "for=10.1.2.3"}
    with serve(tmp_path, "--workers", str(workers)) as (url, _):
        async with http_client() as client:
            got = await client.post(f"{url}/v1/chat/completions", json=CALL, headers=forged)
    assert got.status_code == 401
