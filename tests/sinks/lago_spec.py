"""Lago's published spec, where it is beside the repository."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import referencing
import referencing.jsonschema

from .support import SPEC

NO_SPEC = "Lago's published spec is not beside the repository (../shared/lago)"


def validator(schema: str) -> jsonschema.Draft202012Validator:
    """One that judges by a schema of the spec's components."""
    resource = referencing.jsonschema.DRAFT202012.create_resource(json.loads(SPEC.read_text()))
    registry: referencing.Registry[Any] = referencing.Registry().with_resource("spec:lago", resource)
    return jsonschema.Draft202012Validator({"$ref": f"spec:lago#/components/schemas/{schema}"}, registry=registry)
