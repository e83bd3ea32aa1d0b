"""The OpenAPI 3.1 document, made from the table of operations and the models' own schemas."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .._version import __version__
from .access import Admin, KeyHolder
from .operation import NoBody, NoQuery, Operation
from .problems import ProblemAnswer

REF: Final = "#/components/schemas/{model}"
ABOUT: Final = (
    "Keys, budgets, prices, spend and reports. Plain numbers that are amounts are USD for reading; amounts as strings "
    "are exact decimals; null is no limit. What a caller may not see is answered as what is not there. An admin who "
    "sends X-User-ID sees and changes only that user's keys."
)
_ERRORS: Final = {
    401: "No credentials, or wrong ones.",
    404: "Not there, or not this caller's business.",
    408: "The body did not arrive in time.",
    409: "The present state does not allow it.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "A field is wrong, unknown or missing; the answer names it.",
    503: "The ledger cannot be reached.",
}


def document(operations: Iterable[Operation[Any, Any]]) -> dict[str, Any]:
    """The whole document. Server paths are relative, since an application mounts the API where it likes."""
    table = list(operations)
    models = [(operation.body, "validation") for operation in table if operation.body is not NoBody]
    answers = [(operation.answer, "serialization") for operation in table if operation.answer is not None]
    wanted: dict[tuple[type[BaseModel], Any], None] = dict.fromkeys(
        [*models, *answers, (ProblemAnswer, "serialization")]
    )
    refs, schemas = models_json_schema(list(wanted), ref_template=REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in table:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Askii billing API", "version": __version__, "description": ABOUT},
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {
                "admin": {"type": "http", "scheme": "bearer", "description": "The admin token."},
                "key": {"type": "http", "scheme": "bearer", "description": "A key, for its own data."},
                "key_header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same."},
            },
        },
    }


def _operation(operation: Operation[Any, Any], refs: Any) -> dict[str, Any]:
    security: list[dict[str, list[str]]] = [{"admin": []}] if Admin in operation.who else []
    if KeyHolder in operation.who:
        security += [{"key": []}, {"key_header": []}]
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": security,
        "parameters": _parameters(operation),
        "responses": {str(operation.status): _answer(operation, refs), **_errors(operation, refs)},
    }
    if operation.body is not NoBody:
        needed = any(field.is_required() for field in operation.body.model_fields.values())
        content = {"application/json": {"schema": refs[operation.body, "validation"]}}
        told["requestBody"] = {"required": needed, "content": content}
    if not told["parameters"]:
        del told["parameters"]
    return told


def _parameters(operation: Operation[Any, Any]) -> list[dict[str, Any]]:
    ids = re.findall(r"{(\w+)}", operation.path)
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1, "maxLength": 256}}
        for name in ids
    ]
    if operation.query is not NoQuery:
        schema = operation.query.model_json_schema(ref_template=REF)
        needed = schema.get("required", [])
        found += [
            {"name": name, "in": "query", "required": name in needed, "schema": _without_null(part)}
            for name, part in schema["properties"].items()
        ]
    if operation.for_user:
        about = "Counts only together with the admin token: only this user's keys are seen."
        found.append({"name": "X-User-ID", "in": "header", "description": about, "schema": {"type": "string"}})
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is left out is not sent as null."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    if not options:
        return schema
    rest = {name: part for name, part in schema.items() if name not in ("anyOf", "default")}
    return {**rest, **options[0]} if len(options) == 1 else {**rest, "anyOf": options}


def _answer(operation: Operation[Any, Any], refs: Any) -> dict[str, Any]:
    content: dict[str, Any] = {media_type: {"schema": {"type": "string"}} for media_type in operation.downloads}
    if operation.answer is not None:
        content = {"application/json": {"schema": refs[operation.answer, "serialization"]}, **content}
    return {"description": operation.summary, "content": content}


def _errors(operation: Operation[Any, Any], refs: Any) -> dict[str, Any]:
    absent = set() if operation.conflicts else {409}
    if operation.body is NoBody:
        absent |= {408, 413, 415}
    schema = {"schema": refs[ProblemAnswer, "serialization"]}
    found: dict[str, Any] = {
        str(status): {"description": about, "content": {"application/json": schema}}
        for status, about in _ERRORS.items()
        if status not in absent
    }
    found["503"]["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds."}}
    found["401"]["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return found
