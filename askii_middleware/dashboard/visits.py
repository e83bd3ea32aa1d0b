"""One request to the dashboard: who makes it, what it says, and the ways to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.requests import Request

    from ..tracker import CostTracker
    from .desk import Desk
    from .sessions import Session

COOKIE: Final = "askii_session"
MAX_FORM_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 100
MAX_FIELD_CHARS: Final = 4096
FORM_WITHIN_S: Final = 10.0
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: with that, browsers send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class PageError(Exception):
    """A page cannot be shown. `message` is for the person in front of it and says what to do."""

    def __init__(self, status: int, title: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.title = title
        self.message = message


class Visit:
    """A request, its session if it has one, and what its form says."""

    def __init__(self, desk: Desk, request: Request) -> None:
        self.desk = desk
        self.request = request
        self.base: str = request.scope.get("root_path", "").rstrip("/")
        """The mount path; empty at the root."""
        self.session: Session | None = desk.sessions.find(request.cookies.get(COOKIE, ""))
        self.form: Mapping[str, str] = {}

    @property
    def tracker(self) -> CostTracker:
        return self.desk.tracker

    def asked(self, name: str, most: int = MAX_FIELD_CHARS) -> str:
        """A value of the query; empty where it is not there. Raises PageError for one that is too long."""
        return _bounded(name, self.request.query_params.get(name, ""), most)

    def field(self, name: str, most: int = MAX_FIELD_CHARS) -> str:
        """A value of the form without the spaces around it. Raises PageError for one that is too long."""
        return _bounded(name, self.form.get(name, ""), most).strip()

    async def read_form(self) -> None:
        """Read the body. Raises PageError for what is no form of ours, or comes too slowly."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise PageError(415, "Not a form", "Forms are sent as application/x-www-form-urlencoded.")
        try:
            async with asyncio.timeout(FORM_WITHIN_S):
                body = await self._body()
        except TimeoutError:
            raise PageError(408, "Too slow", "The form did not arrive in time. Send it again.") from None
        except ClientDisconnect:
            raise PageError(400, "Incomplete", "The form did not arrive as a whole. Send it again.") from None
        try:
            pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
        except ValueError:
            raise PageError(400, "Unreadable", "The form cannot be read. Go back, reload the page and retry.") from None
        self.form = dict(pairs)

    async def _body(self) -> bytes:
        body = bytearray()
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > MAX_FORM_BYTES:
                raise PageError(413, "Too large", f"A form has at most {MAX_FORM_BYTES // 1024} kB.")
        return bytes(body)

    def is_of_this_site(self) -> bool:
        """Whether the browser says that one of our own pages sent this. Not every client says anything; forms bring
        their session's token besides.
        """
        site = self.request.headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = self.request.headers.get("origin")
        if origin is None:
            return True
        host = self.request.headers.get("host", "")
        return bool(host) and urlsplit(origin).netloc.lower() == host.lower()

    def url(self, path: str, **query: str | None) -> str:
        """A path of the dashboard as a link, below the mount path."""
        told = {name: value for name, value in query.items() if value}
        return f"{self.base}{path}{'?' + urlencode(told, errors='surrogatepass') if told else ''}"

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A rendered template."""
        content = self.desk.templates.get_template(template).render(
            url=self.url,
            asset=lambda name: f"{self.base}/static/{self.desk.assets.version}/{name}",
            csrf="" if self.session is None else self.session.csrf,
            signed_in=self.session is not None,
            here=self.request.scope["path"].removeprefix(self.base) or "/",
            rate=self.tracker.rates.current(),
            **values,
        )
        return HTMLResponse(content, status, headers=HEADERS)

    def to(self, path: str, **query: str | None) -> Response:
        """On to another page, by GET."""
        return RedirectResponse(self.url(path, **query), 303, headers=HEADERS)

    def let_in(self, answer: Response, session: Session) -> Response:
        """`answer` with the session's cookie."""
        answer.set_cookie(COOKIE, session.value, max_age=int(self.desk.sessions.session_s), **self._cookie())
        return answer

    def let_out(self, answer: Response) -> Response:
        """`answer`, which makes the browser forget the session."""
        answer.delete_cookie(COOKIE, **self._cookie())
        return answer

    def _cookie(self) -> dict[str, Any]:
        how = self.desk.cookie_secure
        secure = self.request.url.scheme == "https" if how == "auto" else how == "always"
        return {"path": self.base or "/", "secure": secure, "httponly": True, "samesite": "strict"}


def _bounded(name: str, value: str, most: int) -> str:
    if len(value) > most:
        raise PageError(400, "Too long", f"{name}: at most {most} characters.")
    if "\0" in value:
        raise PageError(400, "Unreadable", f"{name}: text without NUL.")
    return value
