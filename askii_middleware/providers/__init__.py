"""Wire formats: one module per dialect, found by the end of a request's path.

To add a dialect, write a module with its `Api` and name it in `APIS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from .anthropic import MessagesApi
from .anthropic_batches import MessageBatchesApi
from .anthropic_carriers import VertexMessagesApi, VertexMessagesStreamApi
from .base import Api
from .bedrock import ConverseApi, ConverseStreamApi
from .bedrock_invoke import InvokeApi, InvokeEmbeddingsApi, InvokeImagesApi, InvokeRerankApi, InvokeStreamApi
from .cohere import ChatV1Api, ChatV2Api, GenerateApi
from .cohere_embed import ClassifyApi, EmbedApi, RerankApi
from .gemini import GenerateContentApi, StreamGenerateContentApi, StreamTunedApi, TunedApi
from .gemini_batches import GeminiBatchesApi
from .gemini_embeddings import EmbedContentApi
from .gemini_interactions import InteractionsApi
from .gemini_predict import ImagenApi, PredictEmbeddingsApi
from .mistral import AgentsApi, ConversationsApi, FimApi, OcrApi
from .ollama import OllamaChatApi, OllamaEmbedApi, OllamaGenerateApi
from .openai_audio import SpeechApi, TranscriptionsApi
from .openai_azure import AZURE_APIS
from .openai_batches import BatchesApi
from .openai_chat import ChatApi
from .openai_completions import CompletionsApi
from .openai_embeddings import EmbeddingsApi
from .openai_images import ImagesApi
from .openai_moderations import ModerationsApi
from .openai_responses import CompactApi, ResponsesApi
from .paths import PathTemplate, Target

APIS: tuple[Api, ...] = (
    ChatApi(),
    CompletionsApi(),
    ResponsesApi(),
    CompactApi(),
    EmbeddingsApi(),
    ImagesApi(),
    SpeechApi(),
    TranscriptionsApi(),
    ModerationsApi(),
    BatchesApi(),
    *AZURE_APIS,
    MessagesApi(),
    *(MessageBatchesApi(), VertexMessagesApi(), VertexMessagesStreamApi()),
    *(ConverseApi(), ConverseStreamApi()),
    *(InvokeEmbeddingsApi(), InvokeRerankApi(), InvokeImagesApi(), InvokeApi(), InvokeStreamApi()),
    FimApi(),
    AgentsApi(),
    OcrApi(),
    ConversationsApi(),
    ChatV2Api(),
    ChatV1Api(),
    GenerateApi(),
    EmbedApi(),
    ClassifyApi(),
    RerankApi(),
    OllamaChatApi(),
    OllamaGenerateApi(),
    OllamaEmbedApi(),
    *(GenerateContentApi(), StreamGenerateContentApi(), TunedApi(), StreamTunedApi(), EmbedContentApi()),
    *(PredictEmbeddingsApi(), ImagenApi(), InteractionsApi(), GeminiBatchesApi()),
)


def find_apis(path: str) -> tuple[Api, ...]:
    """The APIs whose path ending this path has, under any mount prefix; the most specific one first. Empty for a path
    that belongs to none.
    """
    path = _plain(path)
    return tuple(api for template, api in _candidates(_CALLS, path) if template.matches(path))


def find_template(api: Api, path: str) -> PathTemplate:
    """The most specific of an API's own path endings that a path has. Raises ValueError if it has none."""
    path = _plain(path)
    for template, owner in _candidates(_CALLS, path):
        if owner is api and template.matches(path):
            return template
    raise ValueError(f"{path!r} is no path of {api.name}")


def find_sight(path: str) -> tuple[Api, str] | None:
    """The API whose operations a GET of this path tells the state of, and the operation's id; None for other paths."""
    return next(iter(find_sights(path)), None)


def find_sights(path: str) -> tuple[tuple[Api, str], ...]:
    """All that share the path, each with the operation's id: see `find_sight`."""
    path = _plain(path)
    found = []
    for template, api in _candidates(_SIGHTS, path):
        if template.matches(path):
            operation = template.name(Target(path, None))
            if operation is not None and "/" not in operation:
                found.append((api, operation))
    return tuple(found)


def choose_api(apis: tuple[Api, ...], fields: Mapping[str, msgspec.Raw]) -> Api | None:
    """The one of a path's APIs that a body belongs to; None if it lacks the required members of them all."""
    return next((api for api in apis if api.owns(fields)), None)


def _plain(path: str) -> str:
    if "//" in path:
        # Some servers take a doubled slash for one: such a path must not slip by.
        path = "/".join(["", *(segment for segment in path.split("/") if segment)])
    return path.rstrip("/")


def _last_segment(path: str) -> str:
    """What the indexes are keyed by: the last segment, or the verb behind its colon (`models/x:generateContent`)."""
    return path.rpartition("/")[2].rpartition(":")[2]


_Index = dict[str, tuple[tuple[PathTemplate, Api], ...]]


def _candidates(index: _Index, path: str) -> tuple[tuple[PathTemplate, Api], ...]:
    return (*index.get(_last_segment(path), ()), *index.get("", ()))


def _index(pairs: Iterable[tuple[str, Api]]) -> _Index:
    """By what is known of a path's last segment: empty where that is the name itself."""
    index: _Index = {}
    for text, api in sorted(pairs, key=lambda pair: len(pair[0]), reverse=True):
        template = PathTemplate(text)
        key = "" if text.endswith("}") else _last_segment(template.ending)
        index[key] = (*index.get(key, ()), (template, api))
    return index


_CALLS = _index((suffix, api) for api in APIS for suffix in api.suffixes)
_SIGHTS = _index((suffix, api) for api in APIS for suffix in api.sights)
