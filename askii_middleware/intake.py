"""What a request to a metered path asks for: its body read, and its call specified. Nothing is held yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from .body import BodyTooLargeError, Parsed, UnreadableBodyError, decoded, form_names, parse_body, read_body
from .calls import CallSpec
from .models import canonical
from .providers import choose_api
from .providers.base import Api, CallRequest, InvalidRequestError
from .tokens import count_tokens, encoding_of

if TYPE_CHECKING:
    from starlette.types import Receive

MAX_LENGTH_DIGITS = 18
_BOUNDING = frozenset(
    (
        *("model", "messages", "prompt", "input", "stream", "stream_options", "n", "best_of", "background", "tools"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "service_tier", "speed"),
    )
)
"""Members that say whether a body is a call, of what model and how large."""


class Intake(NamedTuple):
    """A request's body as it came, and what it is: `api` None means that none of the path's APIs knows it."""

    body: bytes
    api: Api | None
    parsed: Parsed
    encoded: bool = False
    """The body is compressed, or not UTF-8: its bytes are not the text that is read."""


async def take_in(apis: tuple[Api, ...], scope: Mapping[str, Any], receive: Receive, limit: int) -> Intake:
    """Read a request. Raises ClientLeftError, BodyTooLargeError, UnreadableBodyError."""
    encodings, content_type = [], b""
    for name, value in scope["headers"]:
        lower = name.lower()
        if lower == b"content-length" and value.isdigit() and (len(value) > MAX_LENGTH_DIGITS or int(value) > limit):
            raise BodyTooLargeError
        if lower == b"content-encoding":
            encodings.append(value)
        elif lower == b"content-type":
            content_type = value
    body = await read_body(receive, limit)
    plain = decoded(body, b",".join(encodings), limit) if encodings else body
    try:
        parsed = parse_body(plain)
    except UnreadableBodyError:
        # An application's own form may live under a path like these. One that some application could take for a
        # call, with the same fields, may not pass unmetered.
        names = form_names(content_type, plain)
        if names is None:
            raise
        if choose_api(apis, dict.fromkeys(names, msgspec.Raw(b"null"))) is not None:
            raise UnreadableBodyError("send this request as JSON, not as a form") from None
        return Intake(body, None, Parsed(None, len(plain)))
    api = None
    if parsed.fields is not None:
        _refuse_disguised(parsed.fields)
        api = choose_api(apis, parsed.fields)
    return Intake(body, api, parsed, bool(encodings) or parsed.size != len(body))


def _refuse_disguised(fields: Mapping[str, object]) -> None:
    """Some servers (Go's) match members whatever their case. What they would read as a member that bounds the call may
    not be overlooked here. Raises UnreadableBodyError.
    """
    for name in fields:
        if name not in _BOUNDING and name.casefold() in _BOUNDING:
            raise UnreadableBodyError(f"write the member {name[:40]!r} as {name.casefold()!r}")


def specify(api: Api, intake: Intake, default_model: str | None) -> tuple[CallRequest, CallSpec]:
    """What a body that belongs to `api` asks for. Raises InvalidRequestError."""
    parsed = intake.parsed
    assert parsed.fields is not None
    request = api.parse(parsed.fields, parsed.size)
    model = request.model or default_model
    if model is None:
        raise InvalidRequestError("model: the request names no model, and no default_model is configured")
    limit = request.output_limit if request.output_limit is not None else api.default_output_limit
    return request, CallSpec(
        model=model,
        api=api.name,
        family=api.family,
        kind=api.kind,
        provider=api.provider,
        input_tokens=request.input_bound,
        input_estimate=request.input_estimate,
        count_input=None if request.media else _counter(model, intake, request.input_bound),
        output_tokens=None if limit is None else limit * request.choices,
        choices=request.choices,
        remote_input=request.remote_input,
        background=request.background,
        media=request.media,
        stream=request.stream,
        service_tier=request.service_tier,
        other_models=request.other_models,
    )


def _counter(model: str, intake: Intake, bound: int) -> Callable[[], tuple[str, int] | None] | None:
    """What finds the model's encoding and the prompt's bound in its tokens; None where they cannot be counted."""
    encoding = encoding_of(canonical(model))
    if encoding is None or intake.encoded:
        return None

    def count() -> tuple[str, int] | None:
        tokens = count_tokens(intake.body, encoding)
        # What the bound has beyond the body's bytes is the provider's overhead.
        return None if tokens is None else (encoding, tokens + bound - intake.parsed.size)

    return count
