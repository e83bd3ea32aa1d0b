"""`askii serve`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from typing import Any

from .errors import ConfigurationError, MissingExtraError
from .metric_workers import VARIABLE
from .metrics_listener import check_port
from .serving import HOST_VARIABLE, served, start_lines, with_metrics
from .settings import Settings, check_workers, load_settings
from .settings_api import ApiSettings

FACTORY = "askii_middleware.serving:create_app"
ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked about, not chosen
"""Listening addresses that nobody can connect to, and those that reach the same socket."""


def serve(arguments: argparse.Namespace) -> int:
    """Validate the settings here, then run uvicorn with them: in this process, or in several workers."""
    try:
        import uvicorn  # noqa: F401, PLC0415 - comes with the extra
    except ImportError as error:
        raise MissingExtraError("gateway", "askii serve") from error
    overrides: dict[str, Any] = {}
    if arguments.upstream:
        table = {"url": arguments.upstream} | ({"provider": arguments.provider} if arguments.provider else {})
        overrides["upstreams"] = {"openai" if not arguments.provider else arguments.provider: table}
    settings = with_metrics(load_settings(arguments.config, **overrides), arguments.host)
    check_workers(settings, arguments.workers)
    # Built also where only the workers use it: what is wrong is said once, here, and no worker starts in vain.
    app = served(settings, arguments.host)
    port = _bindable_port(arguments.host, arguments.port)
    if settings.metrics_port is not None:
        if settings.metrics_port == 0 and arguments.workers > 1:
            raise ConfigurationError("metrics_port: several workers cannot share port 0; give a number")
        check_port(arguments.host, settings.metrics_port)
    for line in start_lines(settings):
        print(line, file=sys.stderr)
    several = arguments.workers > 1
    with contextlib.ExitStack() as stack:
        if several:
            _hand_over(settings, arguments, overrides)
            if VARIABLE not in os.environ:  # the workers add up their counters here
                os.environ[VARIABLE] = stack.enter_context(tempfile.TemporaryDirectory(prefix="askii-metrics-"))
        _run(FACTORY if several else app, arguments, port, settings.api)
    return 0


def _run(app: Any, arguments: argparse.Namespace, port: int, api: ApiSettings) -> None:
    import uvicorn  # noqa: PLC0415 - comes with the extra

    several = arguments.workers > 1
    threading.Thread(target=_announce, args=(arguments.host, port, api), daemon=True).start()
    uvicorn.run(
        app,
        factory=several,
        host=arguments.host,
        port=port,
        workers=arguments.workers if several else None,
        log_level="warning",
        access_log=False,
        # The peer of `trusted_proxies` is the one that connected, not the one that a header names.
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )


def _bindable_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ConfigurationError where nobody can listen there."""
    if not 0 <= port <= 65_535:
        raise ConfigurationError(f"a port is a number from 0 to 65535, not {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            number: int = probe.getsockname()[1]
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
    return number


def _announce(host: str, port: int, api: ApiSettings) -> None:
    """Say once that the gateway is ready, and where its pages are: when it, or the first of its workers, takes
    connections.
    """
    while True:
        with contextlib.suppress(OSError), socket.create_connection((ANYWHERE.get(host, host), port), timeout=1):
            break
        time.sleep(0.02)
    shown = f"[{host}]" if ":" in host else host
    lines = [f"askii: serving on http://{shown}:{port}"]
    if api.admin_token is not None:
        what = "dashboard and API" if api.dashboard else "API"
        lines.append(f"askii: {what} on http://{shown}:{port}{api.path}/")
    print("\n".join(lines), file=sys.stderr, flush=True)


def _hand_over(settings: Settings, arguments: argparse.Namespace, overrides: dict[str, Any]) -> None:
    """Workers are processes of their own: they read the same settings from the environment."""
    os.environ[HOST_VARIABLE] = arguments.host
    if arguments.config is not None:
        os.environ["ASKII_CONFIG"] = os.path.abspath(arguments.config)  # noqa: PTH100 - text for the environment
    for name, value in overrides.items():
        os.environ[f"ASKII_{name.upper()}"] = json.dumps(value)
    if settings.metrics_path is not None:
        os.environ["ASKII_METRICS_PATH"] = settings.metrics_path
