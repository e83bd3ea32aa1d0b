"""`LagoWebhooks`: where Lago tells that a subscription has ended or a wallet is empty, and that they are back.

A webhook is believed only with Lago's signature over its raw bytes. Lago's unique key is not signed, so a webhook is a
replay if either its key or its bytes were seen before. Lago keeps no order either: what is older than the latest that
was done about its subscription or wallet comes too late. Effects are idempotent: they are done first and remembered
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
from .lago_memory import REMEMBER_S, WebhookMemory
from .lago_signatures import FetchKey, HmacVerifier, JwtVerifier, Verifier
from .lifespan import run_lifespan
from .log_fields import fields, shown

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from .tracker import CostTracker

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 1 << 20
MAX_KEY_CHARS: Final = 128

Tenants = Mapping[str, Sequence[str]] | Callable[[str], Iterable[str]]
"""From an external id to the tenants it stands for."""
Result = Literal["done", "ignored", "replayed", "late", "forged", "malformed", "too large", "too slow", "unavailable"]
_STATUS: Final[dict[Result, int]] = {
    "done": 200,
    "ignored": 200,
    "replayed": 200,
    "late": 200,
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
        organization_id: Lago's id of the organisation that may speak here. A must with `public_key`: a Lago signs for
            all its organisations with one key and as one issuer.
        subscriptions, customers: whom an external id stands for. By default the tenants that the tracker bills to that
            subscription; for a customer those that a subscription of that id stands for, and the tenant of that name.
            Where usage is billed by key, user, team or end user, an id stands for nobody unless these say so.
        body_timeout_s: for a body as a whole.
    """

    def __init__(
        self,
        tracker: CostTracker,
        *,
        hmac_key: str | None = None,
        public_key: str | FetchKey | None = None,
        issuer: str | None = None,
        organization_id: str | None = None,
        subscriptions: Tenants | None = None,
        customers: Tenants | None = None,
        body_timeout_s: float = 10.0,
    ) -> None:
        self._verifiers: dict[str, Verifier] = {}
        if hmac_key is not None:
            self._verifiers["hmac"] = HmacVerifier(hmac_key)
        if public_key is not None:
            if organization_id is None:
                raise ConfigurationError(
                    "lago_webhooks: public_key needs organization_id, because a Lago signs for all its organisations "
                    "with one key"
                )
            self._verifiers["jwt"] = JwtVerifier(public_key, issuer=issuer)
        if not self._verifiers:
            raise ConfigurationError("lago_webhooks: give hmac_key, or public_key, or both; unsigned ones are forged")
        self._tracker = tracker
        self._memory = WebhookMemory(tracker.store, clock=tracker.clock)
        self._organization_id = organization_id
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
            logger.error(  # noqa: TRY400 - no fault of this code
                "a webhook could not be verified: %s", error, extra=fields("webhook_unverified")
            )
            return "unknown", "unavailable"
        if key is None:
            logger.warning(
                "a webhook without Lago's signature was refused", extra=fields("webhook_refused", cause="signature")
            )
            return "unknown", "forged"
        try:
            message = _decode(body)
            type_ = message["webhook_type"]
            if not isinstance(type_, str):
                raise TypeError("its type is no text")  # noqa: TRY301 - told like the others
            if self._organization_id is not None and message.get("organization_id") != self._organization_id:
                logger.warning(
                    "a webhook of another organisation of this Lago was refused",
                    extra=fields("webhook_refused", cause="organization"),
                )
                return "unknown", "forged"
            effect = read_effect(type_, message)
        except (msgspec.DecodeError, ValueError, LookupError, TypeError) as error:
            logger.error(  # noqa: TRY400 - as above
                "a webhook of Lago's cannot be read: %s", str(error)[:200], extra=fields("webhook_unreadable")
            )
            return "unknown", "malformed"
        if effect is None:
            logger.debug("a webhook of type %.100r has no effect", type_, extra=fields("webhook_ignored", type=type_))
            return type_ if type_ in TYPES else "other", "ignored"
        try:
            return type_, await self._once(type_, effect, [f"sha256 {hashlib.sha256(body).hexdigest()}", *key])
        except (StoreError, ValueError) as error:  # ValueError: a table or callable names what is no tenant
            logger.error(  # noqa: TRY400 - as above
                "a webhook of type %s waits for Lago to send it again: %s",
                *(type_, error),
                extra=fields("webhook_waits", type=type_),
            )
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
        """Have an effect unless it was had, or comes too late. Raises StoreError; it can then be tried again."""
        tracker, memory = self._tracker, self._memory
        await tracker.ready()
        if effect.dated and effect.at_s is not None and effect.at_s < tracker.clock() - REMEMBER_S:
            logger.warning(
                "a webhook of type %s is older than what is remembered: nothing is done",
                *(type_,),
                extra=fields("webhook_late", type=type_),
            )
            return "replayed"
        subject = names[0] if effect.about is None else f"{effect.cause} {effect.about}"
        claimed_until_s = await memory.claim(subject)
        if claimed_until_s is None:
            return "unavailable"  # somebody has just begun it, and may have died of it
        if await memory.has_had(names, claimed_until_s):
            logger.info("a webhook of type %s was seen before", type_, extra=fields("webhook_repeated", type=type_))
            result: Result = "replayed"
        else:
            result = await self._in_order(type_, effect, subject)
            await memory.remember(names, for_good=not effect.dated or effect.at_s is None)
        await memory.release(subject)
        return result

    async def _in_order(self, type_: str, effect: Effect, subject: str) -> Result:
        """Have an effect unless a later one about the same subject was had."""
        if effect.about is None or effect.at_s is None:
            await self._have(type_, effect)
            return "done"
        latest_s = await self._memory.latest_s(subject)
        if latest_s is not None and effect.at_s < latest_s:
            logger.warning(
                "a webhook of type %s comes after a later one about the same %s",
                *(type_, effect.cause),
                extra=fields("webhook_late", type=type_),
            )
            return "late"
        await self._have(type_, effect)
        await self._memory.note_latest(subject, effect.at_s)
        return "done"

    async def _have(self, type_: str, effect: Effect) -> None:
        book = self._tracker.tenants
        if effect.action == "alert":
            logger.warning("Lago alert %s", shown(effect.text), extra=fields("lago_alert"))
            return
        assert effect.about is not None
        if effect.action == "lift":
            tenants = await book.lift(effect.cause, effect.about)
        else:
            tenants = self._meant(effect)
            for tenant in tenants:
                await book.suspend(tenant, reason=effect.text, cause=effect.cause, about=effect.about)
            if not tenants:
                logger.warning(
                    "Lago's %s names nobody we know: %s",
                    *(type_, shown(effect.text)),
                    extra=fields("webhook_unmapped", type=type_),
                )
        for tenant in tenants:
            state = "resumed" if book.find(tenant) is None else "suspended"
            logger.warning(
                "tenant %r: %s at Lago's %s",
                *(tenant, state, type_),
                extra=fields("tenant_state", tenant=tenant, state=state, type=type_),
            )

    def _meant(self, effect: Effect) -> list[str]:
        """The tenants to suspend."""
        billed_to = self._tracker.tenants_billed_to
        found: list[str] = []
        if effect.subscription is not None:
            found += _mapped(self._subscriptions, effect.subscription, billed_to)
        if effect.customer is not None:
            same = [*_mapped(self._subscriptions, effect.customer, billed_to)]
            if self._tracker.is_billed_by_name(effect.customer):
                same.append(effect.customer)
            found += _mapped(self._customers, effect.customer, lambda _id: same)
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
