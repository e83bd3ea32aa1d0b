"""Bedrock's InvokeModel: bodies as each maker's models have them, of which the path alone says whose they are.

A body is known by its members (`Form`). One of an unknown form is metered all the same: bound by its bytes, without an
output limit. The answer's own counts come first; where it has none, as Mistral's and Cohere's, they stand in the
headers, and at a stream's end in `amazon-bedrock-invocationMetrics`, whose input excludes the cache. The names that
answers give their models are not used: they do not say the region that is paid for.
Source: docs.aws.amazon.com/bedrock/latest/userguide/model-parameters.html and recorded answers (2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import NOTHING_USED, Report, TokenUsage
from .base import CallRequest, Kind, Rewrite
from .bedrock_answers import MEMBERS, METRICS, absorb_invocation
from .bedrock_common import BedrockApi
from .bedrock_forms import form_of, invoke_bound
from .fields import (
    MAX_CHOICES,
    MAX_OUTPUT_LIMIT,
    encode_members,
    is_set,
    raw_value,
    read_int,
    read_raw_object,
    read_value,
)

_CHOICES = ("n", "num_generations", "numResults")
_EMBEDDING = frozenset(("dimensions", "normalize", "embeddingTypes", "embeddingConfig"))
_IMAGE = frozenset(("imageGenerationConfig", "text_prompts", "aspect_ratio", "negative_prompt", "output_format"))
DOCUMENTS_PER_QUERY = 100
"""What one query of a reranking is billed for (aws.amazon.com/bedrock/pricing)."""


class InvokeApi(BedrockApi):
    """`POST …/model/{model}/invoke`: text, and whatever no other of these APIs knows."""

    name = "bedrock.invoke"
    family = "bedrock.invoke"
    kind: Kind = "text"
    suffixes = ("/model/{model}/invoke",)
    answer_members = MEMBERS
    streams = False
    """Whether the path says that the answer is a stream."""

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:  # noqa: ARG002 - the path says it; nothing is required
        return True

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        form = form_of(fields)
        bound = invoke_bound(form, fields, body_bytes)
        limits = [_read_at(fields, path) for path in form.limits]
        choices = [read_int(fields, name, minimum=1, maximum=MAX_CHOICES) for name in _CHOICES]
        return CallRequest(
            model=None,
            stream=self.streams,
            output_limit=max((limit for limit in limits if limit is not None), default=None),
            choices=max(choice or 1 for choice in choices),
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            fields=fields,
        )

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        fields = request.fields
        if change.output_limit is not None:
            limit = raw_value(change.output_limit)
            form = form_of(fields)
            for path in [path for path in form.limits if _is_set_at(fields, path)] or form.unset_limit(change.model):
                fields = _with(fields, path, limit)
        return encode_members(fields)

    def takes_limit(self, request: CallRequest) -> bool:
        form = form_of(request.fields)
        return any(_is_set_at(request.fields, path) for path in form.limits) or bool(form.unset_limit(None))

    def accepts(self, request: CallRequest, model: str) -> bool:
        return form_of(request.fields).fits(model)

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        if isinstance(answer.get("chunk"), dict) or "inputTextTokenCount" in answer:
            return True
        return "generation_token_count" in answer or (METRICS in answer and "type" not in answer)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_invocation(report, answer)


class InvokeStreamApi(InvokeApi):
    """`POST …/model/{model}/invoke-with-response-stream`."""

    name = "bedrock.invoke.stream"
    suffixes = ("/model/{model}/invoke-with-response-stream",)
    streams = True

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the text API does
        return False


class _OtherKindApi(InvokeApi):
    """A kind of its own on the same path: no output tokens, and no other maker's model to fall back to."""

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        request = super().parse(fields, body_bytes)
        request.output_limit, request.choices = 0, 1
        request.units = self.units(fields)
        if request.units != NOTHING_USED:
            request.billed_by_request = request.units
        return request

    def units(self, fields: Mapping[str, msgspec.Raw]) -> TokenUsage:  # noqa: ARG002 - most are billed by their tokens
        """What the call is billed besides tokens, which its answer does not report."""
        return NOTHING_USED

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:  # noqa: ARG002 - there is nothing to change
        return encode_members(request.fields)

    def accepts(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - the forms differ by version too
        return False

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the text API does
        return False


class InvokeEmbeddingsApi(_OtherKindApi):
    """Embeddings of Amazon's and Cohere's models. A lone `inputText` may be a text model's too and counts as one."""

    name = "bedrock.invoke.embeddings"
    kind: Kind = "embedding"

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        if "inputText" in fields or "inputImage" in fields:
            return "inputText" not in fields or not _EMBEDDING.isdisjoint(fields)
        return "singleEmbeddingParams" in fields or ("input_type" in fields and "messages" not in fields)


class InvokeRerankApi(_OtherKindApi):
    """Rankings of documents, which are billed by the query."""

    name = "bedrock.invoke.rerank"
    kind: Kind = "rerank"

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "query" in fields and "documents" in fields

    def units(self, fields: Mapping[str, msgspec.Raw]) -> TokenUsage:
        documents = read_value(fields, "documents")
        found = len(documents) if isinstance(documents, list) else 1
        return TokenUsage(request=max(-(-found // DOCUMENTS_PER_QUERY), 1))


class InvokeImagesApi(_OtherKindApi):
    """Images of Amazon's and Stability's models, which are billed by the image."""

    name = "bedrock.invoke.images"
    kind: Kind = "image"

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return not _IMAGE.isdisjoint(fields)

    def units(self, fields: Mapping[str, msgspec.Raw]) -> TokenUsage:
        config = read_raw_object(fields, "imageGenerationConfig")
        return TokenUsage(request=read_int(config, "numberOfImages", minimum=1, maximum=MAX_CHOICES) or 1)


def _read_at(fields: Mapping[str, msgspec.Raw], path: tuple[str, ...]) -> int | None:
    *outer, name = path
    for step in outer:
        fields = read_raw_object(fields, step)
    return read_int(fields, name, minimum=0, maximum=MAX_OUTPUT_LIMIT)


def _is_set_at(fields: Mapping[str, msgspec.Raw], path: tuple[str, ...]) -> bool:
    *outer, name = path
    for step in outer:
        fields = read_raw_object(fields, step)
    return is_set(fields, name)


def _with(fields: Mapping[str, msgspec.Raw], path: tuple[str, ...], value: msgspec.Raw) -> dict[str, msgspec.Raw]:
    name, *inner = path
    if inner:
        value = msgspec.Raw(encode_members(_with(read_raw_object(fields, name), tuple(inner), value)))
    return {**fields, name: value}
