"""`askii keys add`: what it takes, and what it never overwrites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from askii_middleware.cli import main
from askii_middleware.keys import hash_secret


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "askii.toml"
    declared = f'[[keys]]\nid = "declared"\nsha256 = "{hash_secret("sk-askii-x")}"\ntenant = "acme"\n'
    path.write_text(f'store = "sqlite:///{tmp_path / "askii.db"}"\n{declared}')
    return str(path)


def keys(config: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["keys", "list", "--json", "--config", config]) == 0
    return {row["id"]: row for row in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("taken", ["declared", "stored", "revoked"])
def test_an_id_that_is_taken_is_refused_and_its_key_stays(
    taken: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stored", "revoked"):
        assert main(["keys", "add", "acme", "--id", name, "--config", config]) == 0
    assert main(["keys", "revoke", "revoked", "--config", config]) == 0
    capsys.readouterr()
    before = keys(config, capsys)
    assert main(["keys", "add", "globex", "--id", taken, "--config", config]) == 1
    assert f"a key with the id '{taken}' exists" in capsys.readouterr().err
    assert keys(config, capsys) == before


@pytest.mark.parametrize("tenant", ["", "x" * 257, "a\0b"])
def test_a_tenant_that_could_never_be_identified_gets_no_key(
    tenant: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "add", tenant, "--config", config]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("askii: keys add: ")
    assert list(keys(config, capsys)) == ["declared"]
