from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A ledger that several processes share."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'askii.db'}"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
