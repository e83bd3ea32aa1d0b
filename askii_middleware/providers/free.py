"""Requests to metered APIs that no provider bills: counting tokens, listing models, cancelling what was begun.

Sources: the official SDKs (anthropic 2.12 `messages.count_tokens`, `messages.batches.cancel`; openai 3.54
`responses.input_tokens`, `responses.cancel`, `batches.cancel`; google-genai 3.4 `models.count_tokens`,
`models.compute_tokens`, `batches.cancel`, `interactions.cancel`; mistralai 3.7 `batch.jobs.cancel`; boto3 1.44
`bedrock-runtime` CountTokens; cohere 7.3 `tokenize`, `detokenize`; ollama 0.6 `show`) and the routes of vLLM's server.
"""

from __future__ import annotations

from .paths import PathTemplate

_ENDINGS = (
    "/messages/count_tokens",
    "/responses/input_tokens",
    "/responses/{id}/cancel",
    "/batches/{id}/cancel",
    "/batch/jobs/{id}/cancel",
    "/batches/{id}:cancel",
    "/interactions/{id}/cancel",
    "/models",
    "/model/{model}/count-tokens",
    "/{model}:countTokens",
    "/{model}:computeTokens",
    "/tokenize",
    "/detokenize",
    "/api/show",
)
_FREE = tuple(map(PathTemplate, _ENDINGS))
_LAST = frozenset(text.rpartition("/")[2].rpartition(":")[2] for text in _ENDINGS)


def is_free(path: str) -> bool:
    """Whether a path, of whatever method, ends like a request that costs nothing."""
    path = path.rstrip("/")
    if path.rpartition("/")[2].rpartition(":")[2] not in _LAST:
        return False
    return any(template.matches(path) for template in _FREE)
