"""Anthropic messages behind the paths of Google Cloud.

The body is a messages request with an `anthropic_version` and without `model`, which stands in the path; the answers
are Anthropic's own. Amazon carries the same bodies under `/model/{model}/invoke` (`bedrock_invoke.py`).
Source: anthropic SDK 2.12 (`lib/vertex/_client.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .anthropic import MessagesApi
from .base import CallRequest, Rewrite

_PATH = "/publishers/anthropic/models/{model}"


class VertexMessagesApi(MessagesApi):
    """`POST …/publishers/anthropic/models/{model}:rawPredict`: a stream where the body asks for one."""

    name = "anthropic.vertex"
    provider = "google"
    suffixes = (f"{_PATH}:rawPredict",)

    def owns(self, fields: Mapping[str, msgspec.Raw]) -> bool:
        # Counting tokens is free, and is a call of a model by the name `count-tokens` with the real one in the body.
        # Nothing is generated without `max_tokens`, so what is sent under that guise is not billed either.
        return "messages" in fields and ("max_tokens" in fields or "model" not in fields)

    def rewrite(self, request: CallRequest, change: Rewrite) -> bytes:
        return super().rewrite(request, msgspec.structs.replace(change, model=None))

    def recognises(self, answer: Mapping[str, object]) -> bool:  # noqa: ARG002 - its answers are those of messages
        return False

    def accepts(self, request: CallRequest, model: str) -> bool:  # noqa: ARG002 - it is a question of the path
        return "claude" in model.casefold()


class VertexMessagesStreamApi(VertexMessagesApi):
    """`POST …/publishers/anthropic/models/{model}:streamRawPredict`."""

    name = "anthropic.vertex.stream"
    suffixes = (f"{_PATH}:streamRawPredict",)

    def parse(self, fields: dict[str, msgspec.Raw], body_bytes: int) -> CallRequest:
        return msgspec.structs.replace(super().parse(fields, body_bytes), stream=True)
