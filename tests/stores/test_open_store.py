from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.errors import ConfigurationError
from askii_middleware.stores import open_store
from askii_middleware.stores.memory import MemoryStore
from askii_middleware.stores.sqlite import SQLiteStore


def test_a_url_names_a_store() -> None:
    assert isinstance(open_store("memory://"), MemoryStore)
    assert isinstance(open_store("sqlite:///askii.db"), SQLiteStore)
    assert open_store("sqlite:////var/askii.db").url == "sqlite:////var/askii.db"
    assert open_store("memory://").url == "memory://"


async def test_three_slashes_are_relative_and_four_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///relative.db", f"sqlite:///{tmp_path}/absolute.db"):
        store = open_store(url)
        await store.open()
        await store.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["absolute.db", "relative.db"]


@pytest.mark.parametrize("url", ["redis://host", "rediss://user:secret@host", "postgresql://user:secret@host/db"])
def test_stores_that_do_not_exist_yet_say_so(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"no (redis|rediss|postgresql):// store yet") as error:
        open_store(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["", "askii.db", "sqlite://askii.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///a?b=c", "mysql://u:secret@h"],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sqlite:///path") as error:
        open_store(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("options", [{"sqlite_sink": "full"}, {"sqlite_sync": "of"}])
def test_unknown_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        open_store("memory://", **options)


def test_options_of_another_store_are_ignored() -> None:
    assert isinstance(open_store("memory://", sqlite_sync="full", lock_timeout_s=1.0), MemoryStore)


def test_a_store_that_is_not_used_is_not_imported() -> None:
    code = "import sys, askii_middleware.stores as s; s.open_store('memory://'); print('sqlite3' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
