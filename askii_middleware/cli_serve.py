"""`askii serve`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from .errors import MissingExtraError
from .serving import start_lines, with_metrics
from .settings import Settings, check_workers, load_settings

FACTORY = "askii_middleware.serving:create_app"


def serve(arguments: argparse.Namespace) -> int:
    """Validate the settings here, then run uvicorn with them: in this process, or in several workers."""
    try:
        import uvicorn  # noqa: PLC0415 - comes with the extra
    except ImportError as error:
        raise MissingExtraError("gateway", "askii serve") from error
    overrides: dict[str, Any] = {}
    if arguments.upstream:
        table = {"url": arguments.upstream} | ({"provider": arguments.provider} if arguments.provider else {})
        overrides["upstreams"] = {"openai" if not arguments.provider else arguments.provider: table}
    settings = with_metrics(load_settings(arguments.config, **overrides), arguments.host)
    check_workers(settings, arguments.workers)
    for line in start_lines(settings):
        print(line, file=sys.stderr)
    _hand_over(settings, arguments.config, overrides)
    place = f"http://{arguments.host}:{arguments.port}"
    print(f"askii: serving on {place}", file=sys.stderr)
    uvicorn.run(
        FACTORY,
        factory=True,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers if arguments.workers > 1 else None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
    )
    return 0


def _hand_over(settings: Settings, config: str | None, overrides: dict[str, Any]) -> None:
    """Workers are processes of their own: they read the same settings from the environment."""
    if config is not None:
        os.environ["ASKII_CONFIG"] = os.path.abspath(config)  # noqa: PTH100 - text for the environment
    for name, value in overrides.items():
        os.environ[f"ASKII_{name.upper()}"] = json.dumps(value)
    if settings.metrics_path is not None:
        os.environ["ASKII_METRICS_PATH"] = settings.metrics_path
