"""Whose a webhook is: everything that is forged, altered, cut short or signed in another way is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askii_middleware.errors import ConfigurationError
from askii_middleware.lago_memory import KIND
from askii_middleware.lago_signatures import HmacVerifier, JwtVerifier, fetched_from
from askii_middleware.lago_webhooks import LagoWebhooks

from .support.asgi import ask
from .support.lago_hooks import DEPLETED, OTHER, TERMINATED, post, receiving
from .support.lago_payloads import HMAC_KEY, ISSUER, ORGANIZATION, pems, signed, signed_jwt, webhook
from .support.servers import serving
from .support.service import Clock, make_tracker

# Signatures -----------------------------------------------------------------------------------------------------------

FORGED: dict[str, dict[str, str]] = {
    "no headers": {},
    "no signature": {"x-lago-signature-algorithm": "hmac"},
    "empty": {**signed(TERMINATED), "x-lago-signature": ""},
    "of another key": signed(TERMINATED, key="guessed"),
    "of another body": signed(OTHER),
    "in hexadecimal": {
        **signed(TERMINATED),
        "x-lago-signature": base64.b64decode(signed(TERMINATED)["x-lago-signature"]).hex(),
    },
    "cut short": {**signed(TERMINATED), "x-lago-signature": signed(TERMINATED)["x-lago-signature"][:-1]},
    "with a space": {**signed(TERMINATED), "x-lago-signature": signed(TERMINATED)["x-lago-signature"] + " "},
    "no text": {**signed(TERMINATED), "x-lago-signature": "\xff\xfe"},
    "an unknown algorithm": {**signed(TERMINATED), "x-lago-signature-algorithm": "none"},
    "an algorithm that is not configured": signed_jwt(TERMINATED),
    "no algorithm, which is jwt": {k: v for k, v in signed(TERMINATED).items() if k != "x-lago-signature-algorithm"},
    "a key that is too long": signed(TERMINATED, unique="k" * 129),
    "a key that is no text": signed(TERMINATED, unique="\xff"),
}


@pytest.mark.parametrize("headers", FORGED.values(), ids=FORGED)
async def test_a_forged_webhook_is_401_and_does_nothing(headers: dict[str, str], tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        assert await post(app, TERMINATED, headers) == (401, "forged")
        assert await tracker.tenant_states() == []
        assert await tracker.store.items(KIND) == []


async def test_two_signatures_are_nobodys(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        raw = [(name.encode(), value.encode()) for name, value in signed(TERMINATED).items()]
        got = await ask(app, TERMINATED, headers=[(b"X-Lago-Signature", b"x"), *raw])
        assert got.status == 401
        assert await tracker.tenant_states() == []


@pytest.mark.parametrize("body", [TERMINATED[:-1], TERMINATED + b" ", TERMINATED.replace(b"acme", b"evil"), b""])
async def test_an_altered_or_truncated_body_is_401(body: bytes, tmp_path: Path) -> None:
    async with receiving(tmp_path) as (tracker, app):
        assert await post(app, body, signed(TERMINATED)) == (401, "forged")
        assert await tracker.tenant_states() == []


@given(st.binary(max_size=200), st.text(max_size=100))
async def test_no_signature_that_was_not_computed_is_taken(body: bytes, signature: str) -> None:
    assert await HmacVerifier(HMAC_KEY)(signature, body) is False
    assert await HmacVerifier(HMAC_KEY)(signed(body)["x-lago-signature"], body) is True
    assert await JwtVerifier(pems()[1])(signature, body) is False


def _signed_under_another_header() -> str:
    """A right signature below a header that says there is none."""
    header = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    return ".".join([header, *_token(signed_jwt(TERMINATED)).split(".")[1:]])


def _hs256_with_the_public_key() -> str:
    """What a verifier takes that believes the token's own `alg`."""

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    claims = json.dumps({"data": TERMINATED.decode(), "iss": ISSUER}).encode()
    head = part(b'{"alg":"HS256","typ":"JWT"}') + b"." + part(claims)
    return (head + b"." + part(hmac.new(pems()[1].encode(), head, hashlib.sha256).digest())).decode()


def _token(headers: dict[str, str]) -> str:
    return headers["x-lago-signature"]


async def test_a_token_signed_by_lago_is_believed_and_named_or_not(tmp_path: Path) -> None:
    public = pems()[1]
    for number, key in enumerate([public, base64.b64encode(public.encode()).decode()]):
        async with receiving(tmp_path, public_key=key, issuer=ISSUER) as (_, app):
            unnamed = signed_jwt(TERMINATED, named=None, unique=f"{number}")
            assert await post(app, TERMINATED, unnamed) == (200, "done")
            assert await post(app, DEPLETED, signed_jwt(DEPLETED, unique=f"{number}-2")) == (200, "done")


@pytest.mark.parametrize(
    "token",
    [
        jwt.encode({"data": TERMINATED.decode(), "iss": ISSUER}, "", "none"),
        _hs256_with_the_public_key(),
        _token(signed_jwt(TERMINATED, pem=HMAC_KEY, algorithm="HS256")),
        _token(signed_jwt(TERMINATED, algorithm="RS384")),
        _token(signed_jwt(OTHER)),
        _token(signed_jwt(TERMINATED, iss="https://evil.example.com")),
        _token(signed_jwt(TERMINATED, data=json.loads(TERMINATED))),
        _token(signed_jwt(TERMINATED, data=None)),
        _token(signed_jwt(TERMINATED, exp=time.time() - 1000)),
        _token(signed_jwt(TERMINATED, nbf=time.time() + 86_400)),
        _signed_under_another_header(),
        _token(signed_jwt(TERMINATED))[:-3],
        "a.b.c",
        "é.b.c",
    ],
    ids=[
        *(
            "alg none",
            "HS256 with the public key",
            "HS256 with the HMAC key",
            "RS384",
            "another body",
            "another issuer",
        ),
        *(
            "data that is no text",
            "no data",
            "expired",
            "not yet",
            "another header",
            "cut",
            "nothing",
            "é",
        ),
    ],
)
async def test_every_other_token_is_forged(token: str, tmp_path: Path) -> None:
    async with receiving(tmp_path, public_key=pems()[1], issuer=ISSUER) as (tracker, app):
        headers = {**signed_jwt(TERMINATED), "x-lago-signature": token}
        assert await post(app, TERMINATED, headers) == (401, "forged")
        assert await tracker.tenant_states() == []


@pytest.mark.parametrize("drifts_s", [{"iat": 4e9}, {"exp": -200.0}, {"nbf": 200.0}])
async def test_clocks_may_differ_a_little(drifts_s: dict[str, Any], tmp_path: Path) -> None:
    claims: dict[str, Any] = {name: time.time() + drift_s for name, drift_s in drifts_s.items()}
    async with receiving(tmp_path, public_key=pems()[1]) as (_, app):
        assert await post(app, TERMINATED, signed_jwt(TERMINATED, **claims)) == (200, "done")


@pytest.mark.parametrize("drift_s", [-86_400.0, 86_400.0])
async def test_a_wrong_clock_of_ours_refuses_nothing(drift_s: float, tmp_path: Path) -> None:
    clock = Clock()
    clock.advance(drift_s)
    async with receiving(tmp_path, clock=clock) as (_, app):
        assert await post(app, TERMINATED) == (200, "done")


async def test_a_public_key_is_fetched_once_and_again_when_it_has_changed() -> None:
    now = [0.0]
    asked: list[int] = []
    keys = ["", pems()[1]]

    async def fetch() -> str:
        asked.append(1)
        if not keys[0]:
            raise OSError("away")
        return keys[0]

    verifier = JwtVerifier(fetch, monotonic=lambda: now[0])
    token = _token(signed_jwt(TERMINATED))
    for _ in range(2):  # the second time it is not even asked
        with pytest.raises(OSError, match=r"away|moment ago"):
            await verifier(token, TERMINATED)
    assert len(asked) == 1
    now[0], keys[0] = 2.0, keys[1]
    assert await verifier(token, TERMINATED) is True
    assert await verifier(token, TERMINATED) is True
    assert await verifier("a.b.c", TERMINATED) is False
    assert len(asked) == 2
    now[0] = 63.0
    assert await verifier("a.b.c", TERMINATED) is False
    assert len(asked) == 3


async def test_the_key_is_read_from_lagos_api(tmp_path: Path) -> None:
    seen = []

    async def lago(scope: Any, _receive: Any, send: Any) -> None:
        seen.append((scope["path"], dict(scope["headers"])[b"authorization"]))
        public = base64.b64encode(pems()[1].encode()).decode()
        body = json.dumps({"webhook": {"public_key": public}}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": body})

    async with serving(lago, lifespan="off") as url:
        async with receiving(tmp_path, public_key=fetched_from(f"{url}/api/v1", "key")) as (_, app):
            assert await post(app, TERMINATED, signed_jwt(TERMINATED)) == (200, "done")
        assert seen == [("/api/v1/webhooks/json_public_key", b"Bearer key")]
        gone = url
    async with receiving(tmp_path, public_key=fetched_from(f"{gone}/api/v1", "s3cret")) as (_, app):
        assert await post(app, TERMINATED, signed_jwt(TERMINATED)) == (503, "unavailable")


def test_a_receiver_without_a_key_is_refused_and_so_is_a_key_that_is_none() -> None:
    tracker = make_tracker("memory://")
    org = {"organization_id": ORGANIZATION}
    for options in ({}, {"hmac_key": ""}, {"public_key": "no key", **org}, {"public_key": "é", **org}):
        with pytest.raises(ConfigurationError, match="lago_webhooks"):
            LagoWebhooks(tracker, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("organization", ["somebody-elses", None])
@pytest.mark.parametrize("sign", [signed, signed_jwt])
async def test_another_organisation_of_the_same_lago_is_forged_whatever_it_signs_with(
    sign: Any, organization: str | None, tmp_path: Path
) -> None:
    options = {"hmac_key": HMAC_KEY, "public_key": pems()[1], "issuer": ISSUER, "organization_id": ORGANIZATION}
    async with receiving(tmp_path, **options) as (tracker, app):
        body = webhook("subscription.terminated", organization=organization)
        assert await post(app, body, sign(body)) == (401, "forged")
        assert await tracker.tenant_states() == []
        assert await tracker.store.items(KIND) == []
        assert await post(app, TERMINATED, sign(TERMINATED)) == (200, "done")


async def test_with_hmac_alone_the_organisation_need_not_be_named(tmp_path: Path) -> None:
    async with receiving(tmp_path) as (_, app):
        body = webhook("subscription.terminated", organization="any")
        assert await post(app, body) == (200, "done")


def test_a_public_key_without_an_organisation_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs organization_id"):
        LagoWebhooks(make_tracker("memory://"), public_key=pems()[1], issuer=ISSUER)


def test_the_key_is_never_fetched_in_the_clear_from_another_machine() -> None:
    with pytest.raises(ConfigurationError, match="url must be https"):
        fetched_from("http://lago.example.com/api/v1", "key")
