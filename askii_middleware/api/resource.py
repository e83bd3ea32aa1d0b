"""One path of the API: finds the operation, asks who it is, reads the request, and answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from ..errors import StoreError
from ..log_fields import fields
from .access import Principal
from .desk import Desk
from .intake import BODY_S, LeftError, read_body, read_path, read_query
from .operation import Asked, Download, Operation
from .problems import NO_HEADERS, ProblemError, not_found, unavailable

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

ANSWER_S: Final = 30.0
SAFE_HEADERS: Final = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
PIECE_BYTES: Final = 64 << 10


class Resource:
    """The operations of one path, as an ASGI application. Without operations: what is not there.

    Args:
        body_s: for a body as a whole.
        answer_s: for what happens before it and after it.
    """

    def __init__(
        self,
        desk: Desk,
        operations: Iterable[Operation[Any, Any]] = (),
        *,
        body_s: float = BODY_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._desk = desk
        self._operations = {operation.method: operation for operation in operations}
        if (get := self._operations.get("GET")) is not None:
            self._operations["HEAD"] = get
        self._body_s = body_s
        self._answer_s = answer_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._respond(scope, receive, watched)
        except LeftError:
            return
        except Exception as error:
            if started:  # the server cuts the connection, so that nobody takes a part for the whole
                raise
            problem = self._problem(scope, error)
            await _send(scope, send, problem.status, problem.answer.model_dump_json().encode(), problem.headers)

    def _problem(self, scope: Scope, error: Exception) -> ProblemError:
        if isinstance(error, ProblemError):
            return error
        if isinstance(error, StoreError):
            self._desk.tracker.log.store_failed("api", error)
            return unavailable()
        if isinstance(error, TimeoutError):
            logger.warning(
                "an answer of the billing API took more than %g s",
                *(self._answer_s,),
                extra=fields("api_slow", method=scope["method"]),
            )
            return unavailable()
        logger.error("the billing API failed", exc_info=error, extra=fields("api_failed", method=scope["method"]))
        return ProblemError(500, "internal_error", "this is a defect; the log says more")

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.timeout(self._answer_s):
            principal = await self._desk.access.principal(scope["headers"], scope)
        if principal is None:
            raise ProblemError(
                401,
                "unauthorized",
                "send the admin token or an API key, as in 'Authorization: Bearer …'",
                headers={"www-authenticate": "Bearer"},
            )
        operation = self._find(scope["method"], principal)
        asked = Asked(
            desk=self._desk,
            principal=principal,
            path=read_path(scope),
            query=read_query(scope, operation.query),
            body=await read_body(scope, receive, operation.body, operation.max_body_bytes, self._body_s),
        )
        async with asyncio.timeout(self._answer_s):
            answer = await operation.handler(asked)
        if isinstance(answer, Download):
            await self._stream(scope, send, answer)
        else:
            await _send(scope, send, operation.status, answer.model_dump_json().encode())

    def _find(self, method: str, principal: Principal) -> Operation[Any, Any]:
        operation = self._operations.get(method)
        if operation is None and self._operations:
            allowed = ", ".join(sorted(self._operations))
            raise ProblemError(405, "method_not_allowed", f"only {allowed}", headers={"allow": allowed})
        if operation is None or not operation.allows(principal):
            raise not_found()
        return operation

    async def _stream(self, scope: Scope, send: Send, download: Download) -> None:
        """Pieces as they come. The first is waited for, so that a ledger that is away is still told by the status."""
        headers = {
            "content-type": f"{download.media_type}; charset=utf-8",
            "content-disposition": f'attachment; filename="{download.file_name}"',
        }
        async with aclosing(_pieces(download.lines)) as pieces:
            async with asyncio.timeout(self._answer_s):
                first = await anext(pieces, b"")
            await send(_start(200, headers))
            if scope["method"] != "HEAD":
                await send({"type": "http.response.body", "body": first, "more_body": True})
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})


async def _pieces(lines: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Lines, some at a time."""
    gathered = bytearray()
    async for line in lines:
        gathered += line
        if len(gathered) >= PIECE_BYTES:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _start(status: int, headers: Mapping[str, str]) -> Message:
    together = {**SAFE_HEADERS, **headers}
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in together.items()],
    }


async def _send(scope: Scope, send: Send, status: int, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> None:
    own = {"content-type": "application/json", "content-length": str(len(body))}
    await send(_start(status, {**own, **headers}))
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
