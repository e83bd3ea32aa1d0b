"""What a real scrape of the demo shows, once for all tests here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .running import running_demo

TRAFFIC_S = 3.0


@dataclass(frozen=True)
class Scrape:
    """`names`: of all samples that the families announced have or could have; `labels`: seen on each, `le` included."""

    names: set[str]
    labels: dict[str, set[str]]


@pytest.fixture(scope="session")
def scrape(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    text = asyncio.run(_scrape(tmp_path_factory.mktemp("demo")))
    names: set[str] = set()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        # A counter without a child yet has a head and no samples.
        names |= {family.name.removesuffix("_total") + end for end in ends}
        for sample in family.samples:
            names.add(sample.name)
            labels.setdefault(sample.name, set()).update(sample.labels)
    return Scrape({name for name in names if not name.endswith("_created")}, labels)


async def _scrape(folder: Path) -> str:
    async with running_demo(folder) as demo:
        await asyncio.sleep(TRAFFIC_S)
        await demo.quiet()
        return await demo.scrape()
