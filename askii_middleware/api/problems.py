"""What the API answers where it cannot do what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigurationError, UnknownModelError
from ..log_fields import shown

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
MAX_NAMED: Final = 20
"""Wrong fields that are named in one answer."""


class WrongField(BaseModel):
    """One field of the request, and what is wrong with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    message: str


class ProblemDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    message: str
    fields: tuple[WrongField, ...] = ()


class ProblemAnswer(BaseModel):
    """The body of every answer that is no success."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"error": {"code": "not_found", "message": "not found", "fields": []}}]},
    )

    error: ProblemDetail


class ProblemError(Exception):
    """Ends a request with a status and a body of `ProblemAnswer`."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: tuple[WrongField, ...] = (),
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.answer = ProblemAnswer(error=ProblemDetail(code=code, message=message, fields=fields))


def not_found() -> ProblemError:
    """For what is not there, and in the same words for what this caller may not see."""
    return ProblemError(404, "not_found", "not found")


def conflict(message: str) -> ProblemError:
    """For what the present state does not allow."""
    return ProblemError(409, "conflict", message)


def invalid(name: str, message: str) -> ProblemError:
    """For one wrong field."""
    field = WrongField(name=name, message=message)
    return ProblemError(422, "invalid_request", f"{name}: {message}", fields=(field,))


def unavailable() -> ProblemError:
    """For a ledger that is away. What went wrong with it is for the log."""
    return ProblemError(
        503, "ledger_unavailable", "the ledger cannot be reached; try again", headers={"retry-after": "1"}
    )


def invalid_fields(error: ValidationError) -> ProblemError:
    """For fields that pydantic has refused, by name. Values are not repeated: one may be a secret in a wrong place."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    fields = tuple(
        WrongField(
            name=shown(".".join(map(str, problem["loc"]))) or "body",
            message="unknown field" if problem["type"] == "extra_forbidden" else shown(_said(problem["msg"])),
        )
        for problem in found[:MAX_NAMED]
    )
    told = "; ".join(f"{field.name}: {field.message}" for field in fields)
    return ProblemError(422, "invalid_request", told[:2000], fields=fields)


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


@contextmanager
def judged(name: str) -> Iterator[None]:
    """Whatever the service finds wrong with a value in here is a wrong field of the request."""
    try:
        yield
    except UnknownModelError as error:
        raise ProblemError(422, "model_not_priced", str(error)) from None
    except (ConfigurationError, ValueError) as error:
        raise invalid(name, str(error)[:1000]) from None
