"""Identity from JSON Web Tokens."""

from __future__ import annotations

import base64
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.errors import ConfigurationError, MissingExtraError
from askii_middleware.identify import (
    MISSING,
    Identifier,
)
from askii_middleware.identity import Identity
from askii_middleware.settings import Settings

from .asgi_scopes import Header, bearer, failure, scope


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("ASKII_")]:
        monkeypatch.delenv(name)


# JSON Web Tokens -----------------------------------------------------------------------------------------------------

HS_SECRET = "a shared secret of at least 32 bytes"


def jwt_identifier(**table: Any) -> Identifier:
    pytest.importorskip("jwt", reason="the extra `jwt` is not installed")
    settings = Settings(
        identity={"sources": ["jwt", "state"], "jwt": {"secret": HS_SECRET, **table}}, default_tenant="d"
    )
    return Identifier.from_settings(settings, clock=lambda: 1000.0)


def token(claims: dict[str, Any], *, key: Any = HS_SECRET, algorithm: str | None = "HS256") -> Header:
    import jwt  # noqa: PLC0415 - an extra

    return bearer(jwt.encode(claims, key, algorithm=algorithm))


async def test_a_verified_token_names_tenant_and_user() -> None:
    identifier = jwt_identifier(tenant_claim="org")
    request = scope(token({"org": "acme", "sub": "u1", "exp": 1001}))
    for _ in range(2):
        assert await identifier.identify(request) == Identity(tenant="acme", user="u1", source="jwt")


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"tenant": "acme", "exp": 1000}, "expired"),
        ({"tenant": "acme", "exp": 2000, "nbf": 1001}, "not valid yet"),
        ({"tenant": "acme"}, "MissingRequiredClaim"),
        ({"sub": "u1", "exp": 2000}, "claim 'tenant'"),
        ({"tenant": "acme", "exp": float("nan")}, "no time"),
        ({"tenant": "acme", "exp": float("inf")}, "no time"),
        ({"tenant": "acme", "exp": "soon"}, "no time"),
    ],
)
async def test_a_token_of_ours_that_fails_ends_the_search(claims: dict[str, Any], named: str) -> None:
    found = await failure(jwt_identifier(), scope(token(claims), state={"tenant_id": "by-state"}))
    assert found.kind == "refused"
    assert named in found.message


async def test_audience_and_issuer_are_checked_where_configured() -> None:
    identifier = jwt_identifier(audience="askii", issuer="https://issuer.example")
    good = {"tenant": "acme", "exp": 2000, "aud": "askii", "iss": "https://issuer.example"}
    assert await identifier.identify(scope(token(good))) == Identity(tenant="acme", source="jwt")
    for wrong in ({"aud": "other"}, {"iss": "https://evil.example"}):
        assert (await failure(identifier, scope(token({**good, **wrong})))).kind == "refused"


async def test_leeway_moves_both_ends() -> None:
    identifier = jwt_identifier(leeway_s=5)
    for claims in ({"tenant": "acme", "exp": 996}, {"tenant": "acme", "exp": 2000, "nbf": 1005}):
        assert await identifier.identify(scope(token(claims))) == Identity(tenant="acme", source="jwt")
    assert (await failure(identifier, scope(token({"tenant": "acme", "exp": 995})))).kind == "refused"


async def test_a_token_somebody_else_signed_is_not_found() -> None:
    claims = {"tenant": "evil", "exp": 2000}
    default = Identity(tenant="d", source="default")
    identifier = jwt_identifier()
    other = token(claims, key="another secret of at least 32 bytes!")
    unsigned = token(claims, key=None, algorithm="none")
    tampered = (other[0], other[1][:-4] + b"AAAA")
    for header in (other, unsigned, tampered, bearer("a.b.c"), bearer("sk-proj-1"), bearer("x" * 20_000)):
        assert await identifier.identify(scope(header)) == default


async def test_a_public_key_does_not_verify_tokens_signed_with_it_as_a_secret() -> None:
    pytest.importorskip("jwt", reason="the extra `jwt` is not installed")
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an extra
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415 - an extra

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    settings = Settings(identity={"sources": ["jwt"], "jwt": {"public_key": pem.decode()}})
    identifier = Identifier.from_settings(settings, clock=lambda: 1000.0)
    claims = {"tenant": "acme", "exp": 2000}
    assert await identifier.identify(scope(token(claims, key=private, algorithm="RS256"))) == Identity(
        tenant="acme", source="jwt"
    )
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    import hmac  # noqa: PLC0415 - only for the forgery

    mac = base64.urlsafe_b64encode(hmac.digest(pem, head + b"." + body, "sha256")).rstrip(b"=")
    forged = (b"authorization", b"Bearer " + head + b"." + body + b"." + mac)
    assert await failure(identifier, scope(forged)) == MISSING


async def test_two_different_tokens_are_refused_and_verified_ones_are_forgotten_in_turn() -> None:
    identifier = jwt_identifier()
    one, two = (token({"tenant": name, "exp": 2000}) for name in ("one", "two"))
    assert (await failure(identifier, scope(one, two))).kind == "ambiguous"
    assert await identifier.identify(scope(one, one)) == Identity(tenant="one", source="jwt")

    from askii_middleware.jwt_tokens import JwtVerifier  # noqa: PLC0415 - an extra

    verifier = JwtVerifier(HS_SECRET, algorithm="HS256", clock=lambda: 1000.0, max_entries=3)
    for n in range(9):
        assert verifier.verify(token({"tenant": str(n), "exp": 2000})[1].removeprefix(b"Bearer ")) == {
            "tenant": str(n),
            "user": None,
        }
    assert len(verifier._verified) == 3


def test_a_key_that_is_none_is_a_configuration_error() -> None:
    pytest.importorskip("jwt", reason="the extra `jwt` is not installed")
    from askii_middleware.jwt_tokens import JwtVerifier  # noqa: PLC0415 - an extra

    with pytest.raises(ConfigurationError, match="RS256") as raised:
        JwtVerifier("not a PEM at all", algorithm="RS256")
    assert "PEM" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="none"):
        JwtVerifier(HS_SECRET, algorithm="none")


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    settings = Settings(identity={"sources": ["jwt"], "jwt": {"secret": HS_SECRET}})
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[jwt\]"):
        Identifier.from_settings(settings)
