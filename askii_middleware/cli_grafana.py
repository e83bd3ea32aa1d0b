"""`askii grafana`: the dashboard and the Prometheus rules that ship in the package, made by `tools/build_dashboard.py`
and by hand.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from .cli_output import show
from .errors import ConfigurationError

DASHBOARD = "dashboard.json"
RULES = "rules.yml"


def shipped(name: str) -> str:
    """The text of `DASHBOARD` or `RULES`."""
    return (files(__package__) / "observability" / name).read_text("utf-8")


def write(output: str | None, *, rules: bool, as_json: bool) -> int:
    """Write one of them to a file, which is replaced, or to standard output. Raises ConfigurationError."""
    name = RULES if rules else DASHBOARD
    text = shipped(name)
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        Path(output).write_text(text, "utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}") from error
    show({"file": output, "holds": "rules" if rules else "dashboard"}, as_json=as_json)
    return 0
