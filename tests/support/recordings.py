"""The corpus: answers that providers gave, and requests that fit them."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from tests.providers.support import CORPUS

MESSAGES = [{"role": "user", "content": "Count the tokens of this, please."}]
BOUNDARY = "a0b1c2d3e4f5"


@dataclass(frozen=True)
class Recording:
    """One manifest entry and its answer as it was on the wire."""

    number: int
    entry: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.entry["file"])

    @cached_property
    def wire(self) -> bytes:
        return (CORPUS / self.name).read_bytes()

    @property
    def text(self) -> bytes:
        """The answer without its content encoding."""
        return gzip.decompress(self.wire) if self.entry["content_encoding"] == "gzip" else self.wire

    @property
    def is_socket(self) -> bool:
        return bool(self.entry["http_status"] == 101)

    @property
    def path(self) -> str:
        """The request's path without its query, escaped as it was sent."""
        return str(self.entry["request_path"]).partition("?")[0]

    @property
    def streamed(self) -> bool:
        """The answer is a stream, in whatever framing."""
        kind = self.entry["response_headers"].get("content-type", "")
        return any(mark in kind for mark in ("event-stream", "eventstream", "ndjson", "stream+json", "jsonl"))

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The recorded ones, and those that the manifest states apart."""
        given = {**self.entry["response_headers"]}
        given.setdefault("content-type", "application/json")
        if self.entry["content_encoding"]:
            given["content-encoding"] = self.entry["content_encoding"]
        return [(name.encode(), value.encode()) for name, value in given.items()]

    @property
    def frames(self) -> list[tuple[str, str]]:
        """Of a socket: who speaks, `sent` (the client) or `received`, and what."""
        lines = [json.loads(line) for line in self.wire.splitlines() if line]
        return [(line["direction"], json.dumps(line["data"])) for line in lines]

    @property
    def operation(self) -> str:
        """For sights: the bare id of the operation that is told of."""
        found = re.search(r"/batches/([^/]+)", self.path)
        assert found is not None, self.path
        return found[1]


def recordings() -> list[Recording]:
    """All of them, in the manifest's order; empty where there is no corpus."""
    manifest = CORPUS / "manifest.json"
    if not manifest.exists():
        return []
    entries = json.loads(manifest.read_text("utf-8"))["entries"]
    return [Recording(number, entry) for number, entry in enumerate(entries)]


@dataclass(frozen=True)
class Request:
    """What a client sends. `path` may have a query."""

    path: str
    body: bytes
    content_type: str = "application/json"


def request_for(recording: Recording) -> Request:
    """A small valid request to the API that gave this answer."""
    entry = recording.entry
    path, model, stream = entry["request_path"], entry["request_model"], entry["request_stream"]
    if "/audio/" in path:
        return _form(
            path, {"model": model, "response_format": "json", **({"stream": "true"} if recording.streamed else {})}
        )
    body = _body(recording.path, unquote(model or ""))
    if "/deployments/" not in path and "/model/" not in path and "/models/" not in recording.path.rpartition(":")[0]:
        body["model"] = model
    if stream is not None:
        body["stream"] = stream
    if entry["request_stream_options"] is not None:
        body["stream_options"] = entry["request_stream_options"]
    if "background" in recording.name:
        body["background"] = True
    return Request(path, json.dumps(body).encode())


def _body(path: str, model: str) -> dict[str, Any]:  # the model stands in `body` only where its form depends on it
    text = str(MESSAGES[0]["content"])
    verb = path.rpartition("/")[2].rpartition(":")[2]
    contents = [{"role": "user", "parts": [{"text": text}]}]
    if path.endswith("/v1/chat"):
        return {"message": text}
    if path.endswith(("/completions", "/v2/chat", "/api/chat")) and not path.endswith("/v1/completions"):
        return {"messages": MESSAGES}
    match verb:
        case "completions" | "generate":
            return {"prompt": text}
        case "messages":
            return {"messages": MESSAGES, "max_tokens": 500}
        case "responses" | "input_tokens" | "interactions" | "embeddings":
            return {"input": text}
        case "generations":
            return {"prompt": text, "size": "1024x1024", "quality": "high"}
        case "rerank":
            return {"query": "two?", "documents": ["one", "two", "three"]}
        case "converse" | "converse-stream":
            return {"messages": [{"role": "user", "content": [{"text": text}]}], "inferenceConfig": {"maxTokens": 500}}
        case "invoke" | "invoke-with-response-stream":
            return _invoke_body(model, text)
        case "generateContent" | "streamGenerateContent":
            return {"contents": contents}
        case "batchEmbedContents":
            return {"requests": [{"model": f"models/{model}", "content": {"parts": [{"text": text}]}}] * 2}
    raise LookupError(f"no request is known for {path}")


def _invoke_body(model: str, text: str) -> dict[str, Any]:
    if "anthropic." in model:
        messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        return {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 500, "messages": messages}
    if "cohere." in model:
        return {"message": text}
    return {"inputText": text}


def _form(path: str, fields: dict[str, str]) -> Request:
    """A multipart form with these fields and an audio file."""
    names = [f'name="{name}"\r\n' for name in fields] + [
        'name="file"; filename="a.mp3"\r\nContent-Type: audio/mpeg\r\n'
    ]
    values = [value.encode() for value in fields.values()] + [b"ID3" + bytes(range(256)) * 20]
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n".encode() + value + b"\r\n"
        for name, value in zip(names, values, strict=True)
    )
    return Request(path, body + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}")


def beginning_of(recording: Recording) -> tuple[Request, dict[str, Any]]:
    """For sights: the request that began their operation, and what the provider answered it then."""
    name = recording.operation
    if recording.entry["api"] == "anthropic":
        params = {"model": "claude-haiku-4-5-20251001", "max_tokens": 50, "messages": MESSAGES}
        body: dict[str, Any] = {"requests": [{"custom_id": str(n), "params": params} for n in range(2)]}
        counts = {"processing": 2, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        state = {"processing_status": "in_progress", "request_counts": counts, "ended_at": None, "results_url": None}
        dates = {"created_at": "2026-08-19T14:21:14Z", "expires_at": "2026-08-20T14:21:14Z"}
        return (
            Request(recording.path.partition("/batches")[0] + "/batches", json.dumps(body).encode()),
            {"id": name, "type": "message_batch", **state, **dates},
        )
    if recording.entry["api"] == "gemini":
        items = [
            {"request": {"contents": [{"parts": [{"text": "2+2"}]}]}, "metadata": {"key": str(n)}} for n in range(2)
        ]
        body = {"batch": {"display_name": "b", "input_config": {"requests": {"requests": items}}}}
        metadata = {"model": "models/gemini-2.5-flash", "state": "BATCH_STATE_PENDING", "name": f"batches/{name}"}
        path = recording.path.partition("/batches")[0] + "/models/gemini-2.5-flash:batchGenerateContent"
        return Request(path, json.dumps(body).encode()), {"name": f"batches/{name}", "metadata": metadata}
    body = {"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h"}
    state = {"status": "validating", "usage": None, "request_counts": {"total": 0, "completed": 0, "failed": 0}}
    return (
        Request(recording.path.rpartition("/")[0], json.dumps(body).encode()),
        {"id": name, "object": "batch", "model": None, **body, **state, "created_at": 1787150474},
    )
