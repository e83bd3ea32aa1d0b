"""`[api]`: the billing API and the dashboard of `askii serve`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from .settings_tables import Number, Secret, Table


def _is_token(secret: SecretStr) -> SecretStr:
    token = secret.get_secret_value()
    if not 16 <= len(token) <= 1024 or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("use 16 to 1024 random characters of printable ASCII without spaces")
    return secret


class ApiSettings(Table):
    """`[api]`: served where there is an `admin_token`, which also signs in to the dashboard."""

    admin_token: Annotated[Secret, AfterValidator(_is_token)] | None = None
    path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)+$")] = "/askii"
    """Below it are `/api/…`, `/openapi.json`, and the dashboard."""
    dashboard: bool = True
    session_s: Annotated[float, Number, Field(ge=60, le=31 * 86_400)] = 43_200.0
    """How long a sign-in to the dashboard lasts."""
    cookie_secure: Literal["auto", "always", "never"] = "auto"
    """Whether its cookie goes over TLS only; `auto`: where the request did."""
