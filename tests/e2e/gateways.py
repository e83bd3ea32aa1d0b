"""`askii serve` as a process of its own, with a configuration file of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from askii_middleware.keys import hash_secret

ROOT = Path(__file__).parents[2]
START_S = 30.0

PRICES = {
    "tiny": (1_500, 6_000),
    "small": (10, 40),
    "gpt-4o": (2_500, 10_000),
    "o4-mini": (1_100, 4_400),
    "text-embedding-3-small": (20, 0),
    "claude-haiku-4-5": (1_000, 5_000),
    "slow": (2_500, 10_000),
    "die-mid-stream": (2_500, 10_000),
    "gone": (2_500, 10_000),
    "error-500": (2_500, 10_000),
    "house": (2_500, 10_000),
    "by-output": (0, 10_000),
}
"""nano-USD per token of input and of output. Declared, so that nothing here depends on the shipped catalogue."""


def secret_of(tenant: str) -> str:
    """The API key of a tenant of the tests."""
    return f"sk-askii-{tenant}"


def cost_nano_usd(model: str, input_tokens: int, output_tokens: int) -> int:
    """What the file below makes of a usage."""
    of_input, of_output = PRICES[model]
    return input_tokens * of_input + output_tokens * of_output


def write_config(
    folder: Path,
    upstreams: Mapping[str, tuple[str, list[str]]],
    *,
    budgets: Mapping[str, str],
    settings: Mapping[str, object] | None = None,
    tables: str = "",
) -> None:
    """Write an `askii.toml` whose ledger lies beside it. `upstreams`: by name, URL and models. `budgets`: USD a day by
    tenant; each of these tenants has a key. `settings`: at the top level. `tables`: text that is appended.
    """
    top: dict[str, object] = {"store": store_url(folder), **(settings or {})}
    lines = [f"{name} = {json.dumps(value)}" for name, value in top.items()]
    for model, (of_input, of_output) in PRICES.items():
        lines.append(f'[pricing."{model}"]')
        lines.append(f"input_usd_per_mtok = {of_input / 1000}\noutput_usd_per_mtok = {of_output / 1000}")
    for tenant, limit_usd in budgets.items():
        lines.append(f'[[budgets]]\nscope = "tenant={tenant}"\nlimit_usd = "{limit_usd}"')
        lines.append(f'[[keys]]\nid = "key-{tenant}"\nsha256 = "{hash_secret(secret_of(tenant))}"\ntenant = "{tenant}"')
    for name, (url, models) in upstreams.items():
        lines.append(f'[upstreams.{name}]\nurl = "{url}"\nmodels = {json.dumps(models)}\napi_key = "key-of-{name}"')
    (folder / "askii.toml").write_text("\n".join([*lines, tables]) + "\n")


def store_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'askii.db'}"


def ready_url(log: Path, has_ended: Callable[[], bool]) -> str:
    """The URL that a gateway names in its log when it is ready. Raises RuntimeError with the log where it ends."""
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        ready = re.search(r"serving on (http://\S+)", log.read_text(errors="replace"))
        if ready:
            return ready[1]
        if has_ended():
            break
        time.sleep(0.01)
    raise RuntimeError(f"askii serve did not start:\n{log.read_text(errors='replace')}")


class Gateway:
    """A running `askii serve`. Made by `serve`, which waits until it says that it is ready."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """All that it has said on standard error."""
        return self._log.read_text(errors="replace")

    def wait_until_ready(self) -> str:
        """Its URL. Raises RuntimeError with its log where it ends instead."""
        return ready_url(self._log, has_ended=lambda: self.process.poll() is not None)

    def kill(self) -> None:
        """SIGKILL, to it and its workers: no goodbye to anybody."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ctrl-C, as a person would end it; its exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=20)
        finally:
            self.kill()


def launch(folder: Path, *options: str, **environment: str) -> Gateway:
    """Start `askii serve` on a free port, in a process group of its own and with the folder's `askii.toml`, and do not
    wait for it.
    """
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "askii_middleware.cli", "serve", "--port", "0", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=clean_environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Gateway(process, log)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment, without settings of ours but those given, and with this package to import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ASKII_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@contextlib.contextmanager
def serve(folder: Path, *options: str, **environment: str) -> Iterator[tuple[str, Gateway]]:
    """A gateway while the block lasts; yields its URL and itself."""
    gateway = launch(folder, *options, **environment)
    try:
        yield gateway.wait_until_ready(), gateway
    finally:
        gateway.kill()
