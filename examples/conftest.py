"""The examples as their READMEs start them: commands of their own, on free ports, in a folder of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI

ROOT = Path(__file__).parents[1]
START_S = 30.0
ADMIN_TOKEN = "an-admin-token-of-the-examples"


@dataclass(frozen=True)
class Running:
    """An example under uvicorn, with the simulated provider behind it and a fresh ledger."""

    url: str
    folder: Path

    def askii(self, *arguments: str) -> dict[str, Any]:
        """Run the `askii` command on the example's ledger."""
        return askii(self.folder, *arguments)

    def client(self, secret: str | None) -> httpx.Client:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=30)

    @contextlib.contextmanager
    def openai(self, secret: str) -> Iterator[OpenAI]:
        """The official SDK, pointed at the example."""
        with DefaultHttpxClient(trust_env=False) as http:
            yield OpenAI(base_url=f"{self.url}/v1", api_key=secret, http_client=http)


def askii(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "askii_middleware.cli", *arguments, "--json"]
    ended = subprocess.run(command, cwd=folder, env=_environment({}), capture_output=True, check=True)
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@contextlib.contextmanager
def uvicorn(factory: str, folder: Path, *options: str, **environment: str) -> Iterator[str]:
    """`uvicorn --factory` in `folder`; yields its URL when it is ready."""
    log = folder / f"{factory.replace(':', '-')}.log"
    command = [sys.executable, "-m", "uvicorn", "--factory", factory, "--port", "0", "--no-access-log", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=_environment(environment), stdout=output, stderr=output)
    try:
        until_s = time.monotonic() + START_S
        while not (ready := re.search(r"running on (http://[\d.:]+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > until_s:
                raise RuntimeError(f"{factory} did not start:\n{log.read_text()}")
            time.sleep(0.02)
        yield ready[1]
    finally:
        process.terminate()
        status = process.wait(timeout=20)
    assert status in (0, -15), log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASKII_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The example in the test's own directory."""
    example = Path(request.path).parent
    folder = tmp_path_factory.mktemp(example.name)
    (folder / "askii.toml").write_text((example / "askii.toml").read_text())
    with (
        uvicorn("askii_middleware.demo.provider:provider_app", folder) as provider,
        uvicorn(
            "app:create_app", folder, "--app-dir", str(example), PROVIDER_URL=f"{provider}/v1", ADMIN_TOKEN=ADMIN_TOKEN
        ) as url,
    ):
        yield Running(url, folder)


@pytest.fixture(scope="module")
def secret(running: Running) -> str:
    """An API key of the tenant `acme`."""
    return str(running.askii("keys", "add", "acme")["secret"])
