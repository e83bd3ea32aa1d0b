"""Vertex's `predict`: embeddings, which count the tokens of each instance, and Imagen, billed per image.

The answer of Imagen counts nothing but has an entry for each image, also for those that a filter removed.
Source: google-genai SDK 3.4 (`models.py`: `_EmbedContent*_to_vertex`, `_GenerateImages*`; `types.py`:
`ContentEmbeddingStatistics`, `GenerateImagesConfig`) (2026-11). Unverified: that removed images are not billed, and
that four are made where a request does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..usage import Report, TokenUsage
from .base import CallRequest, StreamReader
from .bounds import BYTES_PER_TOKEN
from .counts import GARBAGE, count, member
from .fields import decode_object, is_set, read_int, read_raw_object
from .gemini_bounds import Media, bound_of
from .gemini_common import GeminiApi, labelled_user
from .gemini_stream import PathsReader
from .json_paths import Path
from .sse import SseReader

DEFAULT_IMAGES = 4
"""What Imagen makes where a request does not say."""
MAX_IMAGES = 1_000
_INSTANCE_MEMBERS = frozenset(("content", "text", "image", "video"))
_TOKEN_PATHS = (("error",), ("predictions", "*", "embeddings", "statistics", "token_count"))
_IMAGE_PATHS = (("error",), ("predictions", "*", "mimeType"), ("predictions", "*", "raiFilteredReason"))


class PredictApi(GeminiApi):
    """What both kinds share. Answers are large and say little, so they are only looked through."""

    suffixes = ("/{model}:predict",)
    default_output_limit = 0
    paths: tuple[Path, ...]

    def stream_reader(self, *, hide_usage: bool) -> StreamReader:  # noqa: ARG002 - predictions are never streamed
        return SseReader(self.absorb)

    def body_reader(self) -> StreamReader:
        return PathsReader(self.absorb, self.paths)

    def read_body(self, body: bytes) -> Report:
        reader = self.body_reader()
        reader.feed(body)
        reader.finish()
        return reader.report


class PredictEmbeddingsApi(PredictApi):
    """`POST …/models/{model}:predict` of an embedding model: the instances are texts (or images and videos)."""

    name = "vertex.embeddings"
    family = "vertex.embeddings"
    kind = "embedding"
    paths = _TOKEN_PATHS

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return any(not _INSTANCE_MEMBERS.isdisjoint(instance) for instance in instances(fields))

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        media = Media()
        for instance in instances(fields):
            image, video = member(instance, "image"), instance.get("video")
            if image:
                media.payload("image/", image.get("bytesBase64Encoded"))
            media.remote = media.remote or video is not None
        bound = bound_of(media, body_bytes)
        return CallRequest(
            model=None,
            output_limit=0,
            input_bound=bound.tokens,
            input_estimate=bound.estimate,
            media=bound.media,
            remote_input=bound.remote,
            end_user=labelled_user(fields),
            fields=fields,
        )

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return bool(_token_counts(answer))

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        report.failed = report.failed or bool(answer.get("error"))
        counts = _token_counts(answer)
        if counts:
            usage = TokenUsage.from_totals(sum(value for value in counts if value > 0), 0)
            report.usage = msgspec.structs.replace(usage, anomalous=True) if min(counts) < 0 else usage
            report.finished = True


class ImagenApi(PredictApi):
    """`POST …/models/{model}:predict` of an image model: the instance is a prompt, perhaps with images to change."""

    name = "vertex.images"
    family = "vertex.images"
    kind = "image"
    paths = _IMAGE_PATHS

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        return any("prompt" in instance for instance in instances(fields))

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        asked = read_int(read_raw_object(fields, "parameters"), "sampleCount", minimum=0, maximum=MAX_IMAGES)
        images = TokenUsage(request=asked or DEFAULT_IMAGES)
        return CallRequest(
            model=None,
            output_limit=0,
            input_bound=body_bytes,
            input_estimate=-(-body_bytes // BYTES_PER_TOKEN),
            media=True,
            end_user=labelled_user(fields),
            units=images,
            billed_by_request=images,
            fields=fields,
        )

    def recognises(self, answer: Mapping[str, Any]) -> bool:
        return any("mimeType" in prediction or "raiFilteredReason" in prediction for prediction in _predictions(answer))

    def absorb(self, report: Report, answer: Mapping[str, Any]) -> None:
        report.failed = report.failed or bool(answer.get("error"))
        if self.recognises(answer):
            made = sum("mimeType" in prediction for prediction in _predictions(answer))
            report.usage = TokenUsage(request=made)
            report.finished = True


def instances(fields: Mapping[str, msgspec.Raw]) -> list[dict[str, Any]]:
    """The objects a `predict` request is about; none where it has no list of them."""
    body = decode_object(b'{"instances":' + bytes(fields["instances"]) + b"}") if is_set(fields, "instances") else None
    found = body.get("instances") if body else None
    return [instance for instance in found if isinstance(instance, dict)] if isinstance(found, list) else []


def _token_counts(answer: Mapping[str, Any]) -> list[int]:
    found: list[int] = []
    for prediction in _predictions(answer):
        tokens = member(member(prediction, "embeddings"), "statistics").get("token_count")
        if tokens is not None:
            counted = count(tokens)
            found.append(GARBAGE if counted is None else counted)
    return found


def _predictions(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = answer.get("predictions")
    return [prediction for prediction in found if isinstance(prediction, dict)] if isinstance(found, list) else []
