"""What every end-to-end test stands on: a real LLM server, a simulated provider, and three ways through us."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from askii_middleware import CostTracker
from askii_middleware.demo.provider import provider_app
from askii_middleware.settings import load_settings
from tests.support.servers import serving

from .apps import fastapi_app, litestar_app
from .books import Books, opened
from .gateways import serve, store_url, write_config
from .upstreams import Watched, in_thread

BUDGETS = {"acme": "10", "poor": "0.001", "waiting": "0.002", "thrifty": "0.002"}
"""USD a day."""


@pytest.fixture(scope="session")
def llm() -> Any:
    """The LLM server, or None where it cannot be had."""
    try:
        from tests.support import tinyllm  # noqa: PLC0415 - needs packages that not every platform has

        return tinyllm.start()
    except ImportError as error:
        return error


@pytest.fixture(scope="session")
def tinyllm(llm: Any) -> str:
    """The URL of a real LLM server with the model `tiny`."""
    if isinstance(llm, ImportError):
        pytest.skip(f"no real LLM server: {llm}")
    return str(llm.listening_address)


@pytest.fixture(scope="session")
def simulated() -> Iterator[tuple[str, Watched]]:
    """The simulated provider, its URL and what it sees."""
    provider = Watched(provider_app(slow_s=20))
    with in_thread(provider) as url:
        yield url, provider


@dataclass(frozen=True)
class Front:
    """One way through: where clients send their calls, where its ledger is, and who serves its models."""

    kind: str
    url: str
    books: Books
    upstreams: dict[str, str]
    provider: Watched


def _configure(folder: Path, upstreams: dict[str, str]) -> None:
    models = {"tiny": ["tiny*"], "simulated": ["*"]}
    write_config(
        folder,
        {
            "gone": ("http://127.0.0.1:1/v1", ["gone"]),
            **{name: (f"{url}/v1", models[name]) for name, url in upstreams.items()},
        },
        budgets=BUDGETS,
        tables='[fallbacks]\n"gpt-4o" = ["small"]\n',
    )


@pytest.fixture(scope="session")
def upstreams(llm: Any, simulated: tuple[str, Watched]) -> dict[str, str]:
    """URLs by name. Tests whose answers come from `tiny` ask for the fixture `tinyllm`, and are skipped without it."""
    tiny = simulated[0] if isinstance(llm, ImportError) else str(llm.listening_address)
    return {"tiny": tiny, "simulated": simulated[0]}


@pytest.fixture(scope="session")
def gateway(upstreams: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The gateway's URL and its folder."""
    folder = tmp_path_factory.mktemp("gateway")
    _configure(folder, upstreams)
    with serve(folder) as (url, _):
        yield url, folder


@pytest.fixture(params=["askii serve", "FastAPI", "Litestar"])
async def front(
    request: pytest.FixtureRequest, upstreams: dict[str, str], simulated: tuple[str, Watched], tmp_path: Path
) -> AsyncIterator[Front]:
    """The same configuration in a gateway process, and around applications of two frameworks."""
    if request.param == "askii serve":
        url, folder = request.getfixturevalue("gateway")
        async with opened(store_url(folder)) as books:
            yield Front(request.param, url, books, upstreams, simulated[1])
        return
    _configure(tmp_path, upstreams)
    settings = load_settings(tmp_path / "askii.toml")
    make = fastapi_app if request.param == "FastAPI" else litestar_app
    app = make(settings, CostTracker.from_settings(settings), upstreams)
    async with serving(app) as url, opened(store_url(tmp_path)) as books:
        yield Front(request.param, url, books, upstreams, simulated[1])
