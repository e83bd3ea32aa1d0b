"""Virtual keys: made, listed, rotated and revoked; a key's holder may look at its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from ..currency import NANO, nano_to_coins_text, nano_to_usd_text
from ..errors import ConfigurationError
from ..identity import MAX_TAGS
from ..key_ring import MAX_MODELS, MAX_OVERLAP_S, OVERLAP_S, ListedKey, NewKey
from ..stores.base import KeyRow
from .access import Admin
from .key_budget import read_key_budget
from .operation import ADMIN_OR_KEY, Answer, Asked, Body, Exact, Limit, NoBody, NoQuery, Operation, Query, Text, spelled
from .problems import conflict, invalid, not_found

SCANNED: Final = 10_000
"""Keys that are looked at for one page of one user's keys, and as many more as lead to the first of that page."""
BATCH: Final = 500
KeyId = Annotated[
    str,
    *spelled(
        r"^[A-Za-z0-9_:@+-][A-Za-z0-9_.:@+-]{0,255}$",
        "1 to 256 of the letters A to Z and a to z, digits and _ . : @ + -, the first of them no dot",
    ),
]


class KeyAnswer(Answer):
    """A key without its secret."""

    id: str
    tenant: str
    name: str | None
    user: str | None
    team: str | None
    tags: tuple[str, ...]
    models: tuple[str, ...]
    """Models it may call, by canonical name; empty: all."""
    created_at: datetime | None
    expires_at: datetime | None
    revoked: bool
    former_until: datetime | None
    """Until then the secret before the last rotation opens the key too."""
    source: Literal["store", "config"]


class KeyWithSpendAnswer(KeyAnswer):
    """A key, and what it has spent in the present period of its budget, or today where it has none."""

    spent: float
    """USD, for reading; `spent_usd` is exact."""
    spent_usd: Exact
    spent_coins: Exact
    spent_period: str


class NewKeyAnswer(KeyAnswer):
    """A key with its secret, which is shown only this once."""

    secret: str


class KeysAnswer(Answer):
    """A page of keys by id. `next`: what to send as `after` for the next page; null: this was the last."""

    keys: tuple[KeyAnswer, ...]
    next: str | None


class RevokedAnswer(Answer):
    """A key that is refused from now on."""

    id: str
    revoked: Literal[True]


class KeysQuery(Query):
    tenant: Text | None = None
    after: Annotated[str, Field(max_length=256)] = ""
    limit: Limit = 100


class NewKeyBody(Body):
    """A key to make. `id` is made up where it is left out."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tenant": "acme", "name": "reports", "user": "ann", "models": ["gpt-4o"]}]}
    )

    tenant: Text
    id: KeyId | None = None
    name: Text | None = None
    user: Text | None = None
    team: Text | None = None
    tags: Annotated[tuple[Text, ...], Field(max_length=MAX_TAGS)] = ()
    models: Annotated[tuple[Text, ...], Field(max_length=MAX_MODELS)] = ()
    expires_at: AwareDatetime | None = None


class RotateBody(Body):
    """How long the secret of now opens the key besides the new one; 0: it ends at once."""

    overlap_s: Annotated[float, Field(ge=0, le=MAX_OVERLAP_S)] = OVERLAP_S


async def visible_key(asked: Asked[Any, Any]) -> ListedKey:
    """The key of the path, where it is there and this caller's business; else a 404 that does not tell which."""
    found = await asked.desk.tracker.keys.get(asked.path["key_id"])
    if found is None or not asked.principal.sees(found.row):
        raise not_found()
    return found


async def list_keys(asked: Asked[KeysQuery, NoBody]) -> KeysAnswer:
    principal, query = asked.principal, asked.query
    step = query.limit if principal == Admin() else BATCH
    page: list[ListedKey] = []
    after, scanned = query.after, 0
    while scanned < SCANNED or not page:
        batch = await asked.desk.tracker.keys.list(tenant=query.tenant, after=after, limit=step)
        for key in batch:
            after = key.row.id
            if principal.sees(key.row):
                page.append(key)
            if len(page) == query.limit:
                return KeysAnswer(keys=tuple(map(_shown, page)), next=after)
        scanned += len(batch)
        if len(batch) < step:
            return KeysAnswer(keys=tuple(map(_shown, page)), next=None)
    # Where the search got to may be somebody else's key: what comes after the last of this page is looked at again.
    return KeysAnswer(keys=tuple(map(_shown, page)), next=page[-1].row.id)


async def create_key(asked: Asked[NoQuery, NewKeyBody]) -> NewKeyAnswer:
    body, principal = asked.body, asked.principal
    user = body.user
    if isinstance(principal, Admin) and principal.user is not None:
        if user not in (None, principal.user):
            raise not_found()
        user = principal.user
    try:
        made = await asked.desk.tracker.keys.create(
            body.tenant,
            key_id=body.id,
            name=body.name,
            user=user,
            team=body.team,
            tags=body.tags,
            models=body.models,
            expires_at_s=None if body.expires_at is None else body.expires_at.timestamp(),
        )
    except ConfigurationError as error:
        raise conflict(str(error)) from None
    except ValueError as error:
        raise invalid("body", str(error)) from None
    return _shown_once(made)


async def get_key(asked: Asked[NoQuery, NoBody]) -> KeyWithSpendAnswer:
    key = await visible_key(asked)
    tracker = asked.desk.tracker
    state = await read_key_budget(tracker, key.row)
    spent = state.spent_nano_usd
    return KeyWithSpendAnswer(
        **_fields(key.row, key.source),
        spent=spent / NANO,
        spent_usd=nano_to_usd_text(spent),
        spent_coins=nano_to_coins_text(spent, tracker.rates.current()),
        spent_period=state.period,
    )


async def rotate_key(asked: Asked[NoQuery, RotateBody]) -> NewKeyAnswer:
    key = await visible_key(asked)
    try:
        made = await asked.desk.tracker.keys.rotate(key.row.id, overlap_s=asked.body.overlap_s)
    except ConfigurationError as error:
        raise conflict(str(error)) from None
    return _shown_once(made)


async def revoke_key(asked: Asked[NoQuery, NoBody]) -> RevokedAnswer:
    key = await visible_key(asked)
    if not await asked.desk.tracker.keys.revoke(key.row.id):
        raise not_found()
    return RevokedAnswer(id=key.row.id, revoked=True)


def _fields(row: KeyRow, source: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "tenant": row.tenant,
        "name": row.name,
        "user": row.user,
        "team": row.team,
        "tags": row.tags,
        "models": row.models,
        "created_at": _time(row.created_at_s),
        "expires_at": _time(row.expires_at_s),
        "revoked": row.revoked,
        "former_until": _time(row.former_until_s),
        "source": source,
    }


def _shown(key: ListedKey) -> KeyAnswer:
    return KeyAnswer(**_fields(key.row, key.source))


def _shown_once(made: NewKey) -> NewKeyAnswer:
    return NewKeyAnswer(**_fields(made.row, "store"), secret=made.secret)


def _time(at_s: float | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC)


OPERATIONS: Final = (
    Operation(
        method="GET",
        path="/api/keys",
        name="list_keys",
        summary="Keys, stored and declared, by id.",
        handler=list_keys,
        query=KeysQuery,
        answer=KeysAnswer,
        for_user=True,
    ),
    Operation(
        method="POST",
        path="/api/keys",
        name="create_key",
        summary="Make a key. Its secret is in this answer and nowhere else.",
        handler=create_key,
        body=NewKeyBody,
        answer=NewKeyAnswer,
        status=201,
        conflicts=True,
        for_user=True,
    ),
    Operation(
        method="POST",
        path="/api/keys/{key_id}/rotate",
        name="rotate_key",
        summary="A new secret for a key, whose id, budgets and history stay.",
        handler=rotate_key,
        body=RotateBody,
        answer=NewKeyAnswer,
        conflicts=True,
        for_user=True,
    ),
    Operation(
        method="GET",
        path="/api/keys/{key_id}",
        name="get_key",
        summary="A key, and what it has spent in its budget's present period.",
        handler=get_key,
        answer=KeyWithSpendAnswer,
        who=ADMIN_OR_KEY,
        for_user=True,
    ),
    Operation(
        method="DELETE",
        path="/api/keys/{key_id}",
        name="revoke_key",
        summary="Refuse a key from now on.",
        handler=revoke_key,
        answer=RevokedAnswer,
        for_user=True,
    ),
)
