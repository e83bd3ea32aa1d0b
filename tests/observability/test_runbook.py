"""What the run book tells people to type works as it stands: its commands are run, its queries are parsed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from askii_middleware.cli import main
from askii_middleware.demo.lago import LagoLedger, lago_app
from askii_middleware.demo.provider import provider_app
from tests.e2e.gateways import clean_environment, serve, write_config
from tests.e2e.upstreams import in_thread

from .conftest import Scrape
from .promql import VARIABLES, Query, selectors
from .test_rules import OF_PROMETHEUS, RECORDED, documented

ROOT = Path(__file__).parents[2]
BOOK = (ROOT / "docs" / "runbook.md").read_text()
LAGO_KEY = "key-of-lago"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, indented ones as well."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", BOOK, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE).strip() for indent, text in found]


COMMANDS = list(dict.fromkeys(line for block in blocks("bash") for line in block.splitlines()))
QUERIES = blocks("promql")


@dataclass(frozen=True)
class Place:
    """Where the commands are run: beside the `askii.toml` of a running gateway."""

    folder: Path
    url: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("runbook")
    with in_thread(provider_app()) as provider, in_thread(lago_app(api_key=LAGO_KEY, ledger=LagoLedger())) as lago:
        write_config(
            folder,
            {"up": (f"{provider}/v1", ["*"])},
            budgets={"acme": "10"},
            tables=f'[sinks.lago]\nurl = "{lago}/api/v1"\napi_key = "{LAGO_KEY}"\n',
        )
        command = folder / "bin" / "askii"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m askii_middleware.cli "$@"\n')
        command.chmod(0o755)
        with serve(folder) as (url, _):
            yield Place(folder, url)


def known(command: str) -> bool:
    """Whether the first word after `askii` is one of its commands."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    return ended.value.code == 0


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_run_book_works(line: str, place: Place) -> None:
    name, *words = shlex.split(line)
    if name != "askii" and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    if name == "askii":
        assert known(words[0]), f"the run book names a command that is not there: askii {words[0]}"
    environment = clean_environment()
    environment["PATH"] = f"{place.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", line.replace("localhost:8000", place.url.removeprefix("http://"))],
        cwd=place.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", QUERIES)
def test_every_query_of_the_run_book_reads_what_exists(text: str, scrape: Scrape) -> None:
    assert not any(name in text for name in VARIABLES)
    for name, labels in selectors(Query("run book", text).filled()).items():
        if name in RECORDED:
            assert labels <= RECORDED[name]
        else:
            assert name in scrape.names
            assert labels - OF_PROMETHEUS <= documented()[name]


def test_each_section_says_what_it_means_what_to_look_at_and_what_to_do() -> None:
    sections = re.split(r"^## ", BOOK, flags=re.MULTILINE)[1:]
    assert len(sections) > 10
    for section in sections:
        places = [section.find(f"**{part}") for part in ("Meaning.", "Look at", "Do")]
        assert places == sorted(places), section
        assert -1 not in places, section


def test_links_of_the_run_book_lead_somewhere() -> None:
    for page, anchor in re.findall(r"\]\((\w*(?:\.md)?)#([\w-]+)\)", BOOK):
        text = (ROOT / "docs" / page).read_text() if page else BOOK
        headings = [
            re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        ]
        assert anchor in headings, f"{page}#{anchor}"
