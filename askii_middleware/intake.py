"""What a request to a metered path asks for: its body read, and its call specified. Nothing is held yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from .body import BodyTooLargeError, Parsed, UnreadableBodyError, decoded, form_names, parse_body, read_body
from .calls import CallSpec
from .encodings import codings
from .models import canonical
from .providers import choose_api, find_template
from .providers.base import Api, CallRequest, InvalidRequestError
from .providers.fields import checked_model
from .providers.paths import Target
from .tokens import count_tokens, encoding_of

if TYPE_CHECKING:
    from starlette.types import Receive

    from .forms import Form
    from .providers.paths import PathTemplate

MAX_LENGTH_DIGITS = 18
BATCH_MODEL = "batch"
"""What a batch is filed under as long as it is not known which models it calls."""
_BEFORE_JSON = b" \t\r\n\f\v\0\xef\xbb\xbf"
"""Blanks and byte order marks."""
_BOUNDING = frozenset(
    (
        *("model", "messages", "prompt", "input", "stream", "stream_options", "n", "best_of", "background", "tools"),
        *("max_tokens", "max_completion_tokens", "max_output_tokens", "service_tier", "speed", "options", "images"),
    )
)
"""Members that say whether a body is a call, of what model and how large."""


class Intake(NamedTuple):
    """A request's body as it came, and what it is: `api` None means that none of the path's APIs knows it."""

    body: bytes
    api: Api | None
    parsed: Parsed
    encoded: bool = False
    """The body is compressed, a form, or not UTF-8: its bytes are not the text that is read."""
    form: Form | None = None
    place: PathTemplate | None = None
    """Where in the path the model's name stands, for APIs that have it there."""
    named: str | None = None
    """The name in the path."""


def target_of(scope: Mapping[str, Any]) -> Target:
    """Both forms of a request's path. A `raw_path` that says something else than `path` (something before us changed
    one of the two) is not used.
    """
    path: str = scope["path"]
    raw: bytes | None = scope.get("raw_path")
    if raw is not None:
        raw = raw.partition(b"?")[0]
        if unquote_to_bytes(raw) != path.encode(errors="surrogatepass"):
            raw = None
    return Target(path, raw)


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
            if content_type and content_type != value:
                raise UnreadableBodyError("send one content-type: servers differ in which of two they take")
            content_type = value
    body = await read_body(receive, limit)
    plain = decoded(body, b",".join(encodings), limit) if encodings else body
    if content_type[:10].lower() == b"multipart/" and any(api.takes_forms for api in apis):
        if codings(b",".join(encodings)):
            # A header of gzip can hold bytes that a server which ignores the encoding takes for another form.
            raise UnreadableBodyError("send this form without content-encoding")
        from .forms import read_form  # noqa: PLC0415 - an extra, needed by few

        form = read_form(content_type, plain)
        api = choose_api(tuple(api for api in apis if api.takes_forms), form.fields)
        return _placed(Intake(body, api, Parsed(form.fields, len(plain)), encoded=True, form=form), scope)
    try:
        parsed = parse_body(plain)
    except UnreadableBodyError:
        # An application's own form may live under a path like these. One that some application could take for a
        # call, with the same fields, may not pass unmetered.
        names = form_names(content_type, plain)
        # Some servers (Go's) heed no content-type, and take JSON with text behind it or bytes that are no UTF-8.
        if names is None or plain.lstrip(_BEFORE_JSON).startswith(b"{"):
            raise
        if choose_api(apis, dict.fromkeys(names, msgspec.Raw(b"null"))) is not None:
            raise UnreadableBodyError("send this request as JSON, not as a form") from None
        return Intake(body, None, Parsed(None, len(plain)))
    api = None
    if parsed.fields is not None:
        _refuse_disguised(parsed.fields)
        api = choose_api(apis, parsed.fields)
    return _placed(Intake(body, api, parsed, bool(encodings) or parsed.size != len(body)), scope)


def _placed(intake: Intake, scope: Mapping[str, Any]) -> Intake:
    """With the model's name from the path, for APIs that have it there. Raises UnreadableBodyError for a path that a
    router may take but in which the name cannot be told for certain.
    """
    if intake.api is None or not intake.api.names_model_in_path:
        return intake
    try:
        place = find_template(intake.api, scope["path"])
        named = place.name(target_of(scope)) if place.named else None
    except ValueError:
        named = None
    if named is None:
        raise UnreadableBodyError("write the path as this API has it: the model cannot be read from it")
    return intake._replace(place=place, named=named)


def _refuse_disguised(fields: Mapping[str, object]) -> None:
    """Some servers (Go's) match members whatever their case. What they would read as a member that bounds the call may
    not be overlooked here. Raises UnreadableBodyError.
    """
    for name in fields:
        if name not in _BOUNDING and name.casefold() in _BOUNDING:
            raise UnreadableBodyError(f"write the member {name[:40]!r} as {name.casefold()!r}")


def preferred_model(scope: Mapping[str, Any], header: str | None) -> str | None:
    """The model that a header of this name gives a request without one. Raises InvalidRequestError for several that
    differ: applications take one or the other.
    """
    if header is None:
        return None
    wanted = header.lower().encode()
    found = {value.strip() for name, value in scope["headers"] if name.lower() == wanted} - {b""}
    if len(found) > 1:
        raise InvalidRequestError(f"send one {header}: applications differ in which of two they take")
    return checked_model(found.pop().decode("latin-1")) if found else None


def specify(
    api: Api, intake: Intake, default_model: str | None, is_priced: Callable[[str], bool]
) -> tuple[CallRequest, CallSpec]:
    """What a body that belongs to `api` asks for. Raises InvalidRequestError.

    A name in the path decides, whatever the body says. One that is a deployment's may have no price: then the body's
    model says what it costs.
    """
    parsed = intake.parsed
    assert parsed.fields is not None
    request = api.parse(parsed.fields, parsed.size)
    model = request.model or default_model
    if intake.named is not None:
        named = checked_model(intake.named)
        if not (api.names_deployment and model is not None and not is_priced(named)):
            model = named
    if model is None and request.items:
        model = request.items[0].model
    if model is None and api.kind == "batch":
        model = BATCH_MODEL
    if model is None:
        raise InvalidRequestError("model: the request names no model, and no default_model is configured")
    limit = request.output_limit if request.output_limit is not None else api.default_output_limit
    return request, CallSpec(
        model=model,
        api=api.name,
        family=api.family,
        kind=api.kind,
        provider=api.provider,
        deployment=intake.named if api.names_deployment else None,
        input_tokens=request.input_bound,
        input_estimate=request.input_estimate,
        count_input=None if request.media else _counter(model, intake, request.input_bound),
        output_tokens=None if limit is None else limit * request.choices,
        choices=request.choices,
        remote_input=request.remote_input,
        background=request.background,
        # The answers of these have images in them though no request says so.
        media=request.media or (intake.named is not None and "image" in intake.named),
        stream=request.stream,
        service_tier=request.service_tier,
        other_models=request.other_models,
        alternatives=request.alternatives,
        units=request.units,
        billed_by_request=request.billed_by_request,
        # Google names a batch's model once, in the path.
        items=tuple(items if items.model else items._replace(model=model) for items in request.items),
        accepts=lambda other: api.accepts(request, other),
        takes_limit=api.takes_limit(request),
        shows_output=(lambda other: api.shows_output(request, other)) if request.stream else None,
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
