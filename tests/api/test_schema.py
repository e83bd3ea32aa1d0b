"""The OpenAPI document says what the API does: schemathesis makes requests of it and judges the answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    missing_required_header,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from askii_middleware import Budget, MemorySink
from askii_middleware.api.app import api_app
from askii_middleware.api.openapi import document
from askii_middleware.api.table import OPERATIONS

from ..support.service import Clock, make_tracker
from .support import ADMIN, ADMIN_HEADERS

EXAMPLES = 15
CHECKS = [
    *(not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance),
    *(response_schema_conformance, negative_data_rejection, missing_required_header, unsupported_method),
    allow_header_conformance,
]
NAMES = [operation.name for operation in OPERATIONS]
KNOWN = {"key_id": "k1", "tenant": "acme", "sink": "memory"}


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application on a port of its own, in a thread of its own."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        (listener,) = server.servers[0].sockets
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    tracker = make_tracker(
        "memory://", clock=Clock(), sinks=[MemorySink()], budgets=[Budget(scope="tenant=*", limit_usd=1)]
    )
    with listening(api_app(tracker, ADMIN, dashboard=False)) as url:
        made = httpx.post(f"{url}/api/keys", headers=ADMIN_HEADERS, json={"tenant": "acme", "id": "k1"})
        assert made.status_code == 201
        yield url


@pytest.fixture(scope="module")
def schema(base_url: str) -> Any:
    return schemathesis.openapi.from_url(f"{base_url}/openapi.json")


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_as_the_document_says(name: str, mode: GenerationMode, schema: Any, base_url: str) -> None:
    operation = schema.find_operation_by_id(name)

    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def judged(case: Any, known: bool) -> None:
        if known and mode is GenerationMode.POSITIVE:
            case.path_parameters.update({part: KNOWN[part] for part in case.path_parameters})
        case.call_and_validate(base_url=base_url, headers=ADMIN_HEADERS, checks=CHECKS)

    judged()


def test_the_document_is_valid_and_describes_every_operation(schema: Any) -> None:
    schema.validate()
    found = document(OPERATIONS)
    assert found["openapi"] == "3.1.0"
    described = {(method.upper(), path) for path, methods in found["paths"].items() for method in methods}
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}
    assert len(NAMES) == len(set(NAMES)) == len(OPERATIONS)


def test_every_error_of_every_operation_has_the_same_body() -> None:
    for methods in document(OPERATIONS)["paths"].values():
        for told in methods.values():
            errors = {status: each for status, each in told["responses"].items() if int(status) >= 400}
            assert {"401", "404", "422", "503"} <= set(errors)
            for each in errors.values():
                assert each["content"] == {
                    "application/json": {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}
                }
