"""One operation of the API: everything from which its route and its part of the OpenAPI document are made."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from ..identity import MAX_VALUE_CHARS, Identity
from .access import Admin, KeyHolder, Member, Principal
from .desk import Desk

BODY_BYTES: Final = 256 << 10
MAX_PAGE: Final = 1000
MAX_FILE_PART: Final = 60


def _writable(value: str) -> str:
    """Text that can stand in the ledger, by an identity's rules."""
    try:
        Identity(tenant=value)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("tenant ")) from None
    return value


def spelled(pattern: str, rule: str) -> tuple[AfterValidator, WithJsonSchema]:
    """Text that matches a pattern. What is wrong with other text is said in words; the document has the pattern."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"expected {rule}")
        return value

    return AfterValidator(check), WithJsonSchema({"type": "string", "pattern": pattern})


Text = Annotated[str, Field(min_length=1, max_length=MAX_VALUE_CHARS), AfterValidator(_writable)]
Exact = Annotated[str, Field(pattern=r"^-?[0-9]+(\.[0-9]+)?$")]
"""An exact decimal amount."""
Limit = Annotated[int, Field(ge=1, le=MAX_PAGE)]


class Answer(BaseModel):
    """What is sent back."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Query(BaseModel):
    """What may stand behind the `?`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Body(BaseModel):
    """What may be sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class NoQuery(Query):
    """Nothing behind the `?`."""


class NoBody(Body):
    """Nothing to send."""


Q = TypeVar("Q", bound=Query)
B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Asked(Generic[Q, B]):
    """A request whose sender is known and whose values are checked."""

    desk: Desk
    principal: Principal
    path: Mapping[str, str]
    query: Q
    body: B


@dataclass(frozen=True, slots=True)
class Download:
    """An answer that is no JSON document, line by line; it may take long."""

    media_type: str
    file_name: str
    """Plain ASCII without quotes: of names that somebody chose only `file_part`."""
    lines: AsyncIterator[bytes]


def file_part(name: str) -> str:
    """A name that somebody chose, as a part of a file's name: ASCII letters, digits, `-`, `.` and `_`, which stands for
    all others; at most 60.
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", name[:MAX_FILE_PART])


Handler = Callable[[Asked[Q, B]], Awaitable[Answer | Download]]

ADMIN: Final = frozenset({Admin})
ADMIN_OR_KEY: Final = frozenset({Admin, KeyHolder})
ADMIN_KEY_OR_MEMBER: Final = frozenset({Admin, KeyHolder, Member})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[Q, B]):
    """One method on one path.

    Attributes:
        who: whose requests come to the handler; all others are answered 404. What of its subject they may see is the
            handler's to judge.
        for_user: whether an admin may ask it with `X-User-ID`, for that user's keys only; else that is a 404 too.
        downloads: further media types that the query can ask for.
        conflicts: whether the present state may not allow it (409).
    """

    method: str
    path: str
    name: str
    summary: str
    handler: Handler[Q, B]
    answer: type[Answer] | None
    who: frozenset[type[Any]] = ADMIN
    for_user: bool = False
    query: type[Q] = field(default=NoQuery)  # type: ignore[assignment]
    body: type[B] = field(default=NoBody)  # type: ignore[assignment]
    status: int = 200
    max_body_bytes: int = BODY_BYTES
    downloads: tuple[str, ...] = ()
    conflicts: bool = False

    def allows(self, principal: Principal) -> bool:
        """Whether a caller of this kind may ask at all."""
        if type(principal) not in self.who:
            return False
        return self.for_user or not isinstance(principal, Admin) or principal.user is None
