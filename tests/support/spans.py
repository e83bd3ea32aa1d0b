"""OpenTelemetry's SDK with spans that are kept, and its ASGI instrumentation."""

from __future__ import annotations

from typing import Any

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind


class Spans:
    """A provider of its own, so that tests share nothing, and what it exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def servers(self) -> list[dict[str, Any]]:
        """What was said on the spans of requests."""
        return [said(span) for span in self.all() if span.kind is SpanKind.SERVER]

    def named(self, name: str) -> dict[str, Any]:
        (found,) = [said(span) for span in self.all() if span.name == name]
        return found

    def around(self, app: Any) -> Any:
        return OpenTelemetryMiddleware(app, tracer_provider=self.provider)


def said(span: ReadableSpan) -> dict[str, Any]:
    """Our attributes: those that the HTTP instrumentation sets are its own."""
    return {k: v for k, v in (span.attributes or {}).items() if k.startswith(("gen_ai.", "askii.", "error."))}
