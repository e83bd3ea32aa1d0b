"""Cohere: embed, classify and rerank, the latter as Voyage, Jina, vLLM and LiteLLM serve it, too.

Source: cohere SDK 7.3 (`v2/raw_client.py`), docs.cohere.com, docs.voyageai.com/reference/reranker-api, recorded
answers, 2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import CallRequest, InvalidRequestError
from .bounds import BYTES_PER_TOKEN, TEMPLATE_TOKENS
from .cohere_common import CohereApi, absorb_plain
from .counts import member
from .fields import is_set, read_model, read_value

DOCUMENTS_PER_UNIT = 100
CHUNK_TOKENS = 256
"""Longer documents count as several: a document and its query share a context of at least 512 tokens, of which the
query has at most half (docs.cohere.com/docs/reranking-best-practices).
"""
EMBED_IMAGE_TOKENS = 4_096
"""More than any image is scaled to (docs.cohere.com/docs/multimodal-embeddings: about 2.5 megapixels)."""


class EmbedApi(CohereApi):
    """`POST …/v1/embed` and `…/v2/embed`."""

    name = "cohere.embed"
    family = "cohere.embed"
    kind = "embedding"
    suffixes = ("/v1/embed", "/v2/embed")
    default_output_limit = 0

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return any(is_set(fields, name) for name in ("texts", "images", "inputs"))

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        images, payload_bytes = _images(fields)
        text_tokens = max(body_bytes - payload_bytes, 0)
        return CallRequest(
            model=read_model(fields),
            output_limit=0,
            input_bound=text_tokens + TEMPLATE_TOKENS + images * EMBED_IMAGE_TOKENS,
            input_estimate=max(text_tokens // BYTES_PER_TOKEN + images * EMBED_IMAGE_TOKENS // 4, 1),
            media=images > 0,
            units=TokenUsage(request=images),
            fields=fields,
        )

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return "embeddings" in answer and "meta" in answer

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_plain(report, answer)


class ClassifyApi(CohereApi):
    """`POST …/v1/classify`, billed by the text that is classified."""

    name = "cohere.classify"
    family = "cohere.classify"
    kind = "moderation"
    suffixes = ("/v1/classify",)
    default_output_limit = 0

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return is_set(fields, "inputs") and bytes(fields["inputs"])[:1] == b"["

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        texts = TokenUsage(request=len(read_value(fields, "inputs")))
        return CallRequest(
            model=read_model(fields),
            output_limit=0,
            input_bound=body_bytes + TEMPLATE_TOKENS,
            input_estimate=max(body_bytes // BYTES_PER_TOKEN, 1),
            units=texts,
            billed_by_request=texts,
            fields=fields,
        )

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return isinstance(answer.get("classifications"), list)

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_plain(report, answer)


class RerankApi(CohereApi):
    """`POST …/rerank`. Cohere bills search units, others the tokens of the query with each document."""

    name = "cohere.rerank"
    family = "cohere.rerank"
    kind = "rerank"
    suffixes = ("/rerank",)
    default_output_limit = 0

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return "query" in fields and "documents" in fields

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        documents = read_value(fields, "documents")
        if not isinstance(documents, list):
            raise InvalidRequestError("documents must be a list")
        query_bytes = len(bytes(fields["query"]))
        chunks = len(documents) + body_bytes // CHUNK_TOKENS
        tokens = body_bytes + len(documents) * (query_bytes + 4)
        return CallRequest(
            model=read_model(fields),
            output_limit=0,
            input_bound=tokens + TEMPLATE_TOKENS,
            input_estimate=max(tokens // BYTES_PER_TOKEN, 1),
            units=TokenUsage(request=-(-chunks // DOCUMENTS_PER_UNIT)),
            billed_by_request=TokenUsage(request=max(-(-len(documents) // DOCUMENTS_PER_UNIT), 1)),
            fields=fields,
        )

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        results = answer.get("results")
        if not isinstance(results, list):
            return False
        first = results[0] if results and isinstance(results[0], dict) else {}
        others = "relevance_score" in first and answer.get("object") != "list"  # that is the form of embeddings
        return "meta" in answer or others

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        absorb_plain(report, answer)


def _images(fields: Mapping[str, msgspec.Raw]) -> tuple[int, int]:
    """How many images are to be embedded, and the bytes of those in the request, which are no text."""
    found: list[object] = []
    images = read_value(fields, "images")
    if isinstance(images, list):
        found += images
    raw = fields.get("inputs")
    if raw is not None and b"image" in bytes(raw):
        inputs = read_value(fields, "inputs")
        for item in inputs if isinstance(inputs, list) else ():
            content: object = item.get("content") if isinstance(item, dict) else None
            for piece in content if isinstance(content, list) else ():
                if isinstance(piece, dict) and piece.get("type") == "image_url":
                    found.append(member(piece, "image_url").get("url"))
    data = [image for image in found if type(image) is str and image.startswith("data:")]
    return len(found), sum(len(image) for image in data)
