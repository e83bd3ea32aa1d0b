"""Keys: all of them a page at a time, and new ones, whose secrets are shown once."""

from __future__ import annotations

import uuid
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import TYPE_CHECKING

from starlette.responses import Response

from ..errors import ConfigurationError
from .visits import PageError, Visit

if TYPE_CHECKING:
    from ..key_ring import ListedKey

PAGE = 50
MAX_DAYS = 3660
OVERLAPS = {"0": "at once", "3600": "in an hour", "86400": "in a day", "604800": "in a week"}
FIELDS = ("tenant", "key_id", "name", "user", "team", "tags", "models", "days")
DONE = {
    "revoked": "The key is revoked. Every worker refuses it within seconds.",
    "none": "There is no key of this id.",
}


async def listed(visit: Visit) -> Response:
    """A page of the keys, by id; those of one tenant, where one is asked for."""
    tenant, after = visit.asked("tenant", 256), visit.asked("after", 256)
    found = await visit.tracker.keys.list(tenant=tenant or None, after=after, limit=PAGE + 1)
    keys = found[:PAGE]
    now_s = visit.tracker.clock()
    return visit.page(
        "keys.html",
        title="Keys",
        keys=[(key, state(key, now_s), _seen(key)) for key in keys],
        tenant=tenant,
        after=after,
        next=keys[-1].row.id if len(found) > PAGE else "",
        overlaps=OVERLAPS,
        now_s=now_s,
        done=DONE.get(visit.asked("done")),
    )


def state(key: ListedKey, now_s: float) -> str:
    """A word for what a key does now: `revoked`, `expired` or `active`."""
    if key.row.revoked:
        return "revoked"
    return "expired" if key.row.expires_at_s is not None and now_s >= key.row.expires_at_s else "active"


async def new(visit: Visit) -> Response:
    """The form of a new key, perhaps of a tenant."""
    return _form(visit, dict.fromkeys(FIELDS, "") | {"tenant": visit.asked("tenant", 256)})


async def create(visit: Visit) -> Response:
    """Make a key, and show its secret on this answer only."""
    typed = {name: visit.field(name, 1024) for name in FIELDS}
    try:
        if not typed["tenant"]:
            raise ConfigurationError("tenant: say who pays for the calls of this key")  # noqa: TRY301 - told like the rest
        made = await visit.tracker.keys.create(
            typed["tenant"],
            key_id=typed["key_id"] or visit.field("made_up", 64) or None,
            name=typed["name"] or None,
            user=typed["user"] or None,
            team=typed["team"] or None,
            tags=_several(typed["tags"]),
            models=_several(typed["models"]),
            expires_at_s=_expiry_s(typed["days"], visit.tracker.clock()),
        )
    except (ConfigurationError, ValueError) as error:
        return _form(visit, typed, str(error))
    return visit.page("secret.html", title="New key", row=made.row, secret=made.secret, former="")


async def rotate(visit: Visit) -> Response:
    """Give a key a new secret, and show it on this answer only."""
    overlap = visit.field("overlap", 16)
    if overlap not in OVERLAPS:
        raise PageError(400, "No such overlap", "Choose when the former secret ends.")
    key_id = visit.field("key_id", 256)
    found = await visit.tracker.keys.get(key_id)
    if found is not None and visit.field("seen", 64) != _seen(found):
        # Sent once more, the form would end the secret that the overlap was meant for.
        raise PageError(409, "The key was not rotated", "It has changed since this form was shown. Look at it again.")
    try:
        expected = None if found is None else found.row.sha256  # another browser may be faster even now
        made = await visit.tracker.keys.rotate(key_id, overlap_s=float(overlap), expected_sha256=expected)
    except ConfigurationError as error:
        raise PageError(404 if found is None else 409, "The key was not rotated", f"{error}.") from None
    return visit.page("secret.html", title="New secret", row=made.row, secret=made.secret, former=OVERLAPS[overlap])


async def revoke(visit: Visit) -> Response:
    """Refuse a key from now on."""
    gone = await visit.tracker.keys.revoke(visit.field("key_id", 256))
    return visit.to("/keys", done="revoked" if gone else "none", tenant=visit.field("tenant", 256))


def _seen(key: ListedKey) -> str:
    """Changes with a key's secret, and tells nothing of it."""
    return sha256(f"seen|{key.row.sha256}".encode()).hexdigest()[:16]


def _form(visit: Visit, typed: dict[str, str], problem: str = "") -> Response:
    # An id is made up here, so that a form that is sent twice makes one key.
    made_up = f"key_{uuid.uuid4().hex[:12]}"
    status = 422 if problem else 200
    return visit.page("key.html", status, title="New key", typed=typed, made_up=made_up, problem=problem)


def _several(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _expiry_s(days: str, now_s: float) -> float | None:
    if not days:
        return None
    try:
        number = Decimal(days)
    except InvalidOperation:
        number = Decimal(0)
    if not (number.is_finite() and 0 < number <= MAX_DAYS):
        raise ConfigurationError(f"expires: {days[:32]!r} is not a number of days above 0 and up to {MAX_DAYS}")
    return now_s + float(number * 86_400)
