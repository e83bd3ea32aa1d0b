"""The SQL files of the SQLite ledger: schema steps, and statements by name."""

from __future__ import annotations

from importlib.resources import files


def _lines(name: str) -> list[str]:
    return (files(__package__) / name).read_text("utf-8").splitlines()


def _statements() -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for line in (*_lines("queries.sql"), *_lines("queries_outbox.sql"), *_lines("queries_reading.sql")):
        if line.startswith("-- name: "):
            found[line.removeprefix("-- name: ")] = body = []
        elif line and not line.startswith("--"):
            body.append(line)
    return {name: "\n".join(body) for name, body in found.items()}


SQL = _statements()
STEPS = tuple("\n".join(_lines(f"schema{number}.sql")) for number in ("", "_2", "_3", "_4", "_5", "_6"))
"""Scripts that each bring the schema one version further, the first from nothing to version 1."""
