"""What the pages share: the ledger's tracker, the sessions, the templates and the static files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal

from ..errors import ConfigurationError, MissingExtraError
from ..log_fields import fields
from ..logs import WrongTokens
from .assets import Assets
from .sessions import Sessions
from .shown import FILTERS

if TYPE_CHECKING:
    from jinja2 import Environment

    from ..tracker import CostTracker

logger = logging.getLogger(__name__)

CookieSecure = Literal["auto", "always", "never"]
MIN_TOKEN_CHARS: Final = 16


class Desk:
    """The dashboard of one tracker.

    Args:
        tracker: whose ledger the pages show and change.
        admin_token: what one signs in with; at least 16 characters.
        session_s: for how long one stays signed in.
        cookie_secure: whether the cookie may only travel over HTTPS; `auto`: where the request came that way.
        clock: Unix seconds; None: the tracker's.

    Raises ConfigurationError, and MissingExtraError without the extra `dashboard`.
    """

    def __init__(
        self,
        tracker: CostTracker,
        *,
        admin_token: str,
        session_s: float = 12 * 3600.0,
        cookie_secure: CookieSecure = "auto",
        clock: Callable[[], float] | None = None,
    ) -> None:
        if len(admin_token) < MIN_TOKEN_CHARS:
            raise ConfigurationError(f"api.admin_token: use at least {MIN_TOKEN_CHARS} random characters")
        if not session_s > 0:
            raise ConfigurationError(f"api.session_s: {session_s!r} is not a number of seconds above 0")
        if cookie_secure not in ("auto", "always", "never"):
            raise ConfigurationError(f"api.cookie_secure: {cookie_secure!r} is none of auto, always, never")
        self.tracker = tracker
        self.clock = clock or tracker.clock
        self.cookie_secure = cookie_secure
        self.sessions = Sessions(admin_token, session_s=session_s, clock=self.clock)
        self.assets = _assets()
        self.templates = _templates()
        self._failed = WrongTokens(self.clock)

    def note_failed(self) -> None:
        """Somebody has shown a wrong token."""
        count = self._failed.note()
        if count is not None:
            logger.warning(
                "%d attempts to sign in to the dashboard showed a wrong token",
                *(count,),
                extra=fields("sign_in_failed", count=count),
            )


@lru_cache(maxsize=1)
def _assets() -> Assets:
    return Assets()


@lru_cache(maxsize=1)
def _templates() -> Environment:
    try:
        import jinja2  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtraError("dashboard", "the dashboard") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment
