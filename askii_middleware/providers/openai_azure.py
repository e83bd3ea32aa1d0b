"""Azure OpenAI's deployments: OpenAI's requests and answers, with the deployment's name in the path.

The body may name a model as well (the SDK sends the deployment's name once more); Azure does not look at it. Paths
without a deployment (`/openai/v1/…`, `/models/chat/completions`, `/openai/batches`) end as OpenAI's do and are read by
those APIs. Sources: openai SDK 3.54 (`lib/azure.py`), the inference specification 2024-10-21 (azure-rest-api-specs),
2026-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

import msgspec

from .base import CallRequest, Rewrite
from .fields import encode_members, is_set, read_raw_object
from .openai_audio import SpeechApi, TranscriptionsApi
from .openai_chat import ChatApi
from .openai_common import OpenAiApi
from .openai_completions import CompletionsApi
from .openai_embeddings import EmbeddingsApi
from .openai_images import ImagesApi

_FIRST_WITH_STREAM_OPTIONS = "2024-09-01"
"""Versions before refuse `stream_options` with a 400 (azure-rest-api-specs, issue 29157)."""


class _Deployed(OpenAiApi):
    provider = "azure"
    names_deployment = True

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        body = super().rewrite(request, change)
        if change.model is None or is_set(request.fields, "model"):
            return body
        # The name stands in the path; a body without one stays without.
        members = read_raw_object({"body": msgspec.Raw(body)}, "body")
        if "model" in request.fields:
            members["model"] = request.fields["model"]
        else:
            del members["model"]
        return encode_members(members)

    def recognises(self, answer: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the APIs without deployments read these
        return False

    def query_takes_usage(self, query: bytes) -> bool:
        """Whether streams can be asked for usage at the `api-version` in a path's query string."""
        versions = parse_qs(query.decode("latin-1")).get("api-version", [""])
        return not any(version[:1].isdecimal() and version < _FIRST_WITH_STREAM_OPTIONS for version in versions)


class AzureChatApi(_Deployed, ChatApi):
    """`POST …/deployments/{model}/chat/completions`."""

    name = "azure.chat"
    suffixes = ("/deployments/{model}/chat/completions",)


class AzureCompletionsApi(_Deployed, CompletionsApi):
    """`POST …/deployments/{model}/completions`."""

    name = "azure.completions"
    suffixes = ("/deployments/{model}/completions",)


class AzureEmbeddingsApi(_Deployed, EmbeddingsApi):
    """`POST …/deployments/{model}/embeddings`."""

    name = "azure.embeddings"
    suffixes = ("/deployments/{model}/embeddings",)


class AzureImagesApi(_Deployed, ImagesApi):
    """`POST …/deployments/{model}/images/generations`, `…/images/edits`."""

    name = "azure.images"
    suffixes = ("/deployments/{model}/images/generations", "/deployments/{model}/images/edits")


class AzureSpeechApi(_Deployed, SpeechApi):
    """`POST …/deployments/{model}/audio/speech`."""

    name = "azure.speech"
    suffixes = ("/deployments/{model}/audio/speech",)


class AzureTranscriptionsApi(_Deployed, TranscriptionsApi):
    """`POST …/deployments/{model}/audio/transcriptions`, `…/audio/translations`."""

    name = "azure.transcriptions"
    suffixes = ("/deployments/{model}/audio/transcriptions", "/deployments/{model}/audio/translations")


AZURE_APIS = (
    AzureChatApi(),
    AzureCompletionsApi(),
    AzureEmbeddingsApi(),
    AzureImagesApi(),
    AzureSpeechApi(),
    AzureTranscriptionsApi(),
)
