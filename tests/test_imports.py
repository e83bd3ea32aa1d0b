"""Imports show the architecture: edges know the service, the service knows the core, and nothing knows them back."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "askii_middleware"
ROOT = Path(__file__).parents[1]


def _words(text: str) -> set[str]:
    return set(text.split())


LAYERS = {
    "core": _words(
        """
        _version admission budgets catalogue currency errors expectations fallbacks identity litellm_prices
        log_fields model_price models modes names output_limits price pricing pricing_config records signing
        standing tokens usage
        """
    ),
    "families": _words(
        """
        channels channels.* providers providers.* sinks sinks.* stores stores.*
        """
    ),
    "service": _words(
        """
        adjusting admissions admitting aggregates alerts block budget_status calls charging checks concluding
        corrections counting decorator default_tracker deferrals delivery delivery_age delivery_rounds
        delivery_worker enforcer explaining explanations exposition gauges item_watch journal kept_calls key_ring
        keys known_budgets leased leased.* logs metering metric_series metric_workers metrics operations options
        portal price_again price_desk reconciler reconciling registrations reports repricing retention running
        scraping session settling tenant_data tenants tracing tracker turned usage_report waiting writer
        """
    ),
    "edges": _words(
        """
        __main__ api api.* assembly body bypass cli cli_* compat compat.* cutting dashboard dashboard.* demo demo.*
        encodings forms gateway gateway_* headers identify intake jwt_tokens lago_effects lago_memory
        lago_signatures lago_webhooks lifespan metered metered_socket metrics_listener middleware polling preparing
        refusals routes serving settings settings_api settings_billing settings_retention settings_sinks
        settings_tables settings_webhooks sockets stream_gate
        """
    ),
    "package": {""},
}
"""From the bottom to the top; a module imports its own layer and those below it."""
ORDER = list(LAYERS)

BUILDS_FROM_SETTINGS = {
    *(("tracker", "assembly"), ("tracker", "settings"), ("default_tracker", "settings")),
    ("tracker", "api.app"),
}
"""`CostTracker.from_settings` and `get_cost_tracker` ask for them when they are called, and for their types."""

MEMBERS = {
    "channels": ["callback", "email", "log", "webhook"],
    "stores": ["memory*", "postgres*", "redis*", "sqlite*"],
    "sinks": ["lago*", "log", "memory", "webhook"],
    "providers": [
        *("anthropic*", "bedrock*", "cohere*", "gemini", "gemini_*", "mistral", "ollama", "openai_*", "dialects.*"),
    ],
}
"""What a family consists of; everything else in its folder is shared by its members."""
SHARED = {
    *("providers.openai_common", "providers.openai_stream", "providers.openai_choices"),
    *("providers.anthropic_common", "providers.bedrock_common", "providers.cohere_common"),
    *("providers.dialects.base", "providers.gemini_common", "providers.gemini_bounds", "providers.gemini_stream"),
}
"""Not members in spite of their names."""
KNOWS_MEMBERS = {
    *("", "assembly", "demo.*", "providers", "providers.dialects", "providers.response", "providers.sockets"),
    *("channels", "sinks", "stores"),
}
"""Who may name a member: those that build one from a name, the demo, and the reader of any provider's answer."""

EXTRAS = {
    *("backports", "botocore", "brotli", "compression", "python_multipart"),
    *(
        "aiohttp",
        "fastapi",
        "httptools",
        "jinja2",
        "jwt",
        "opentelemetry",
        "psycopg",
        "redis",
        "rich",
        "toktok",
        "toktok_rs",
        "uvicorn",
        "uvloop",
    ),
}

ON_EXTRAS = {"stores.postgres", "stores.postgres.*", "stores.redis", "stores.redis.*"}
"""Members that are nothing without their extra, and are imported only where a URL names them."""


class Import(NamedTuple):
    source: str
    target: str
    when: str
    """`start`, `call` (inside a function), `optional` (done without where it is missing) or `typing` (never)."""


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


TREES = modules()
PACKAGES = {
    *("api", "compat", "dashboard"),
    *("", "channels", "demo", "leased", "providers", "providers.dialects", "sinks"),
    *("stores", "stores.postgres", "stores.redis"),
}


def imports() -> Iterator[tuple[Import, bool]]:
    """Every import, and whether its target is ours."""
    for source, tree in TREES.items():
        inside: dict[int, str] = {}
        for node in ast.walk(tree):
            kind = ""
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                kind = "call"
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                kind = "typing"
            elif isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type or node) for h in node.handlers):
                kind = "optional"
            if kind:
                inside |= {id(child): kind for child in ast.walk(node)}
        for node in ast.walk(tree):
            when = inside.get(id(node), "start")
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(source, alias.name, when), alias.name.split(".")[0] == PACKAGE
            elif isinstance(node, ast.ImportFrom):
                for target, ours in targets(source, node):
                    yield Import(source, target, when), ours


def targets(source: str, node: ast.ImportFrom) -> Iterator[tuple[str, bool]]:
    """The modules an import statement names, without the package's own name where they are ours."""
    module = node.module or ""
    if not node.level and module.split(".")[0] != PACKAGE:
        yield module, False
        return
    if node.level:
        home = source.split(".") if source in PACKAGES else source.split(".")[:-1]
        base = home[: len(home) - node.level + 1] if source else []
        start = ".".join(part for part in [*base, *module.split(".")] if part)
    else:
        start = ".".join(module.split(".")[1:])
    for alias in node.names:
        inner = f"{start}.{alias.name}".strip(".")
        yield (inner if inner in TREES else start), True


OURS = [found for found, ours in imports() if ours]
THEIRS = [found for found, ours in imports() if not ours]


def layer(module: str) -> str:
    found = [name for name, patterns in LAYERS.items() if any(fnmatchcase(module, p) for p in patterns)]
    assert len(found) == 1, f"{module or PACKAGE} stands in {found or 'no layer'}: give it one here"
    return found[0]


def member_of(module: str) -> tuple[str, str] | None:
    """A member's family and its pattern there."""
    family, _, name = module.partition(".")
    for pattern in MEMBERS.get(family, ()) if module not in SHARED else ():
        if name and fnmatchcase(name, pattern):
            return family, pattern
    return None


def test_the_graph_is_read_at_all() -> None:
    assert Import("middleware", "tracker", "start") in OURS
    assert Import("stores.sqlite", "stores.sqlite_ledger", "start") in OURS
    assert Import("sinks.lago", "records", "start") in OURS
    assert Import("tracker", "assembly", "call") in OURS
    assert Import("session", "writer", "typing") in OURS
    assert Import("providers.response", "providers", "start") in OURS


def test_every_module_stands_in_one_layer() -> None:
    assert {layer(module) for module in TREES} == set(LAYERS)


def test_imports_point_down() -> None:
    up = [
        found
        for found in OURS
        if ORDER.index(layer(found.target)) > ORDER.index(layer(found.source))
        and (found.source, found.target) not in BUILDS_FROM_SETTINGS
    ]
    # The wish for a type is no dependency: what is above may hand itself down.
    assert [found for found in up if found.when != "typing"] == []
    assert {found.target for found in up} <= {"calls"}


def test_nothing_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {module: set() for module in TREES if module != ""}
    for found in OURS:
        if found.when == "start" and found.source and found.target and found.source != found.target:
            graph[found.source].add(found.target)
    # A package's own names come with it: that its members import their base from it is no cycle.
    for package in PACKAGES:
        graph.pop(package, None)
        for needed in graph.values():
            needed.discard(package)
    TopologicalSorter(graph).prepare()


def test_members_import_their_base_and_the_core_and_no_other_member() -> None:
    for found in OURS:
        mine, other = member_of(found.source), member_of(found.target)
        if mine is not None and found.when != "typing":
            assert other in (None, mine), found
            family = found.target.partition(".")[0]
            assert family == mine[0] or layer(found.target) == "core", found


def test_only_those_that_build_members_name_them() -> None:
    for found in OURS:
        if member_of(found.target) is not None and member_of(found.source) is None and found.when != "typing":
            assert any(fnmatchcase(found.source, pattern) for pattern in KNOWS_MEMBERS), found


def test_core_and_service_need_no_extra() -> None:
    for found in THEIRS:
        if found.when == "start" and found.target.split(".")[0] in EXTRAS:
            on_extra = any(fnmatchcase(found.source, pattern) for pattern in ON_EXTRAS)
            assert on_extra or layer(found.source) == "edges", found


def test_the_core_does_no_input_or_output() -> None:
    barred = {"asyncio", "socket", "sqlite3", "httpx", "starlette", "anyio", "subprocess", "prometheus_client"}
    for found in THEIRS:
        if layer(found.source) == "core" and found.when == "start":
            assert found.target.split(".")[0] not in barred, found


HEAVY = ("pydantic", "httpx", "aiohttp", "starlette", "genai_prices", "uvicorn", "rich", "jwt", "asyncio")


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        (f"import {PACKAGE}", set()),
        (f"from {PACKAGE} import Budget, Scope, BudgetExceededError, usd_to_askii_coins", set()),
        (f"from {PACKAGE} import CostTracker, tracked, MemorySink", {"asyncio"}),
        (f"from {PACKAGE} import AskiiMiddleware", {"asyncio"}),
        (f"import {PACKAGE}.cli", {"asyncio"}),
        (f"import {PACKAGE}.compat", {"asyncio"}),
    ],
)
def test_an_import_costs_only_what_it_needs(statement: str, allowed: set[str]) -> None:
    script = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= allowed


def test_names_of_the_package_are_what_they_say() -> None:
    script = (
        f"import {PACKAGE}.decorator, {PACKAGE}.tracker, {PACKAGE} as package\n"
        "from types import ModuleType\n"
        "assert not [name for name in package.__all__ if isinstance(getattr(package, name), ModuleType)]\n"
        "assert set(package.__all__) <= set(dir(package))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
