"""docs/guides.md names tests that are there, and all of those that run the guides' code."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from askii_middleware import compat

from .support import BLOCKS, COMPAT, NO_SEEDS, RUN, SEEDS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLE = (ROOT / "docs" / "guides.md").read_text("utf-8")


def _tests_in(path: Path) -> set[str]:
    return set(re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text("utf-8"), re.MULTILINE))


def test_every_test_of_the_guides_own_code_stands_in_the_table() -> None:
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert named == set().union(*map(_tests_in, HERE.glob("test_seeds_*.py")))


@pytest.mark.skipif(not SEEDS.exists(), reason=NO_SEEDS)
def test_no_piece_of_the_guides_is_left_out() -> None:
    for path in HERE.glob("test_seeds_*.py"):
        import_module(f".{path.stem}", __package__)
    assert set(BLOCKS) == RUN
    assert len(BLOCKS) == 62
    assert not [block for block in BLOCKS.values() if COMPAT in block.text]


def test_every_file_that_the_table_names_is_there() -> None:
    files = set(re.findall(r"`(test_\w+\.py)`", TABLE))
    assert files == {path.name for path in HERE.glob("test_*.py")} - {"test_table.py"}
    for name in re.findall(r"`(tests/[\w/.]+)`", TABLE):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", sorted({*compat.__all__, "router", "set_verbose"}))
def test_every_name_of_the_module_is_there_and_in_the_table(name: str) -> None:
    assert hasattr(compat, name)
    assert f"`{name}`" in TABLE or name in {"KeyBudget", "askii_coins_to_usd"}
