"""`LagoWebhooks`: where Lago tells that a subscription has ended or a wallet is empty, and that they are back.

A webhook is believed only with Lago's signature over its raw bytes. Lago's unique key is not signed, so a webhook is a
replay if either its key or its bytes were seen before. Effects are idempotent: they are done first and remembered
afterwards, and what was begun and never finished may begin again a moment later, which is before Lago tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from .errors import ConfigurationError, StoreError
from .lago_effects import TYPES, Effect, read_effect
from .lago_signatures import FetchKey, HmacVerifier, JwtVerifier, Verifier
from .lifespan import run_lifespan

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .tracker import CostTracker

logger = logging.getLogger(__name__)

KIND: Final = "lago-webhook"
MAX_BODY_BYTES: Final = 1 << 20
MAX_KEY_CHARS: Final = 128
REMEMBER_S: Final = 30 * 86_400.0
"""How long a webhook is recognised. What says of itself that it is older is not done, seen before or not."""
CLAIM_S: Final = 2.0
"""How long a webhook that was begun keeps others from beginning it. Lago tries again after 3 s, and after some 20."""
_BEGUN, _DONE = b'"begun"', b'"done"'

Tenants = Mapping[str, Sequence[str]] | Callable[[str], Iterable[str]]
"""From an external id to the tenants it stands for."""
Result = Literal["done", "ignored", "replayed", "forged", "malformed", "too large", "too slow", "unavailable"]
_STATUS: Final[dict[Result, int]] = {
    "done": 200,
    "ignored": 200,
    "replayed": 200,
    "forged": 401,
    "malformed": 400,
    "too large": 413,
    "too slow": 408,
    "unavailable": 503,
}
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class LagoWebhooks:
    """An ASGI application that takes Lago's webhooks, to be mounted anywhere.

    It suspends tenants at `subscription.terminated` and `wallet.depleted_ongoing_balance`, resumes them at
    `subscription.started` and a settled top-up, each only what its counterpart suspended, and logs `alert.triggered`.
    Other types are acknowledged and have no effect.

    Args:
        hmac_key: Lago's HMAC key, for endpoints that were created with the signature `hmac`.
        public_key: Lago's public key, in PEM or base64 of it, or where to fetch it, for the signature `jwt`.
        issuer: what tokens must say who they come from: Lago's own address.
        subscriptions, customers: whom an external id stands for. By default the tenants that the tracker bills to that
            subscription; for a customer those that a subscription of that id stands for, and the tenant of that name.
        body_timeout_s: for a body as a whole.
    """

    def __init__(
        self,
        tracker: CostTracker,
        *,
        hmac_key: str | None = None,
        public_key: str | FetchKey | None = None,
        issuer: str | None = None,
        subscriptions: Tenants | None = None,
        customers: Tenants | None = None,
        body_timeout_s: float = 10.0,
    ) -> None:
        self._verifiers: dict[str, Verifier] = {}
        if hmac_key is not None:
            self._verifiers["hmac"] = HmacVerifier(hmac_key)
        if public_key is not None:
            self._verifiers["jwt"] = JwtVerifier(public_key, issuer=issuer)
        if not self._verifiers:
            raise ConfigurationError("lago_webhooks: give hmac_key, or public_key, or both; unsigned ones are forged")
        self._tracker = tracker
        self._subscriptions = subscriptions
        self._customers = customers
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(_no_lifespan, self._tracker, scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif scope["method"] != "POST":
            await _send(send, 405, "only POST", [(b"allow", b"POST")])
        else:
            try:
                type_, result = await self._take(scope, receive)
            except _LeftError:
                return
            self._tracker.metrics.lago_webhook(type_, result)
            await _send(send, _STATUS[result], result)

    async def _take(self, scope: Scope, receive: Receive) -> tuple[str, Result]:
        """Its type, as far as it is believed, and what became of it."""
        try:
            async with asyncio.timeout(self._body_timeout_s):
                body = await _read(scope, receive)
        except TimeoutError:
            return "unknown", "too slow"
        if body is None:
            return "unknown", "too large"
        try:
            key = await self._verified(scope, body)
        except (OSError, ConfigurationError) as error:
            logger.error("a webhook could not be verified: %s", error)  # noqa: TRY400 - no fault of this code
            return "unknown", "unavailable"
        if key is None:
            logger.warning("a webhook without Lago's signature was refused")
            return "unknown", "forged"
        try:
            message = _decode(body)
            type_ = message["webhook_type"]
            if not isinstance(type_, str):
                raise TypeError("its type is no text")  # noqa: TRY301 - told like the others
            effect = read_effect(type_, message)
        except (msgspec.DecodeError, ValueError, LookupError, TypeError) as error:
            logger.error("a webhook of Lago's cannot be read: %s", str(error)[:200])  # noqa: TRY400 - as above
            return "unknown", "malformed"
        if effect is None:
            logger.debug("a webhook of type %.100r has no effect", type_)
            return type_ if type_ in TYPES else "other", "ignored"
        try:
            return type_, await self._once(type_, effect, [f"sha256 {hashlib.sha256(body).hexdigest()}", *key])
        except (StoreError, ValueError) as error:  # ValueError: a table or callable names what is no tenant
            logger.error("a webhook of type %s waits for Lago to send it again: %s", type_, error)  # noqa: TRY400
            return type_, "unavailable"

    async def _verified(self, scope: Scope, body: bytes) -> list[str] | None:
        """The names of its unique key, if it has one; None: it is not Lago's."""
        found: dict[bytes, str] = {}
        for raw, value in scope["headers"]:
            name = raw.lower()
            if name.startswith(b"x-lago-"):
                if name in found:
                    return None  # which of two counts should be nobody's guess
                found[name] = value.decode("latin-1")
        verifier = self._verifiers.get(found.get(b"x-lago-signature-algorithm", "jwt").lower())
        signature, key = found.get(b"x-lago-signature"), found.get(b"x-lago-unique-key")
        if verifier is None or not signature or not await verifier(signature, body):
            return None
        if key is None:
            return []
        return [f"key {key}"] if len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable() else None

    # Effects ---------------------------------------------------------------------------------------------------------

    async def _once(self, type_: str, effect: Effect, names: Sequence[str]) -> Result:
        """Have an effect unless it was had. Raises StoreError; it can then be tried again."""
        tracker = self._tracker
        await tracker.ready()
        now_s = tracker.clock()
        if effect.at_s is not None and effect.at_s < now_s - REMEMBER_S:
            logger.warning("a webhook of type %s is older than what is remembered: nothing is done", type_)
            return "replayed"
        for name in names:
            if not await tracker.store.put_item(KIND, name, _BEGUN, until_s=now_s + CLAIM_S, only_new=True):
                known = {item.name: item.value for item in await tracker.store.items(KIND)}
                if any(known.get(each) == _DONE for each in names):
                    logger.info("a webhook of type %s was seen before", type_)
                    return "replayed"
                return "unavailable"  # somebody has just begun it, and may have died of it
        await self._have(type_, effect)
        for name in names:
            await tracker.store.put_item(KIND, name, _DONE, until_s=now_s + REMEMBER_S)
        return "done"

    async def _have(self, type_: str, effect: Effect) -> None:
        book = self._tracker.tenants
        if effect.action == "alert":
            logger.warning("Lago alert %s", effect.text)
            return
        tenants = await self._meant(effect)
        if effect.action == "lift":
            tenants = [tenant for tenant in tenants if await book.resume(tenant, cause=effect.cause)]
        else:
            for tenant in tenants:
                await book.suspend(tenant, reason=effect.text, cause=effect.cause, about=effect.wallet)
            if not tenants:
                logger.warning("Lago's %s names nobody we know: %s", type_, effect.text)
        for tenant in tenants:
            logger.warning(
                "tenant %r: %s at Lago's %s", tenant, "resumed" if effect.action == "lift" else "suspended", type_
            )

    async def _meant(self, effect: Effect) -> list[str]:
        """The tenants an effect concerns."""
        billed_to = self._tracker.tenants_billed_to
        found: list[str] = []
        if effect.subscription is not None:
            found += _mapped(self._subscriptions, effect.subscription, billed_to)
        if effect.customer is not None:
            same = (*_mapped(self._subscriptions, effect.customer, billed_to), effect.customer)
            found += _mapped(self._customers, effect.customer, lambda _id: same)
        if effect.action == "lift" and effect.wallet is not None:
            found += [s.tenant for s in await self._tracker.tenants.states(effect.cause) if s.about == effect.wallet]
        return list(dict.fromkeys(found))


def _mapped(table: Tenants | None, id_: str, otherwise: Callable[[str], Iterable[str]]) -> Iterable[str]:
    if table is None:
        return otherwise(id_)
    return table(id_) if callable(table) else table.get(id_, ())


class _LeftError(Exception):
    """The sender is gone."""


async def _read(scope: Scope, receive: Receive) -> bytes | None:
    """The body; None: it is too large. Raises _LeftError."""
    body = bytearray()
    more = True
    announced = [value for name, value in scope["headers"] if name.lower() == b"content-length"]
    if any(value.isdigit() and int(value[:20]) > MAX_BODY_BYTES for value in announced):
        return None
    while more:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            raise _LeftError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


async def _send(send: Send, status: int, result: str, more: Sequence[tuple[bytes, bytes]] = ()) -> None:
    body = _encode({"result": result})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _no_lifespan(_scope: Scope, receive: Receive, send: Send) -> None:
    """The lifespan of an application that has nothing to start."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
