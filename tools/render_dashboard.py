"""Draw the dashboard's main panels from the demo: `python -m tools.render_dashboard [SECONDS]`.

The demo runs, a real Prometheus scrapes it each second, and is asked the expressions of the shipped dashboard, so that
the picture shows what Grafana would. It needs Debian's package `prometheus`.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.observability.promql import Query, dashboard
from tests.observability.running import Prometheus, prometheus, running_demo

from .svg_panels import FORMATS, GREEN, RED, Panel, page

TARGET = Path(__file__).parents[1] / "docs" / "images" / "dashboard.svg"
SECONDS = 75
WIDTH, GAP, TOP = 1200, 12, 64
LINES = (
    ("Cost per tenant, USD an hour", "Cost per tenant, Askii Coins an hour"),
    ("Tokens a second by model", "Fallback use, calls a second"),
    ("Calls a second by outcome", "Refusals a second by reason"),
    ("Overhead of a call", "Outbox"),
)
BARS, TABLE = "Budget used, tightest of each tenant", "Left in each tenant's tightest budget"

PANELS: dict[str, dict[str, Any]] = {panel["title"]: panel for panel in dashboard()["panels"]}


async def main(seconds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="askii-render-") as name:
        folder = Path(name)
        (folder / "demo").mkdir()
        async with running_demo(folder / "demo", started=False) as demo, prometheus(folder, demo.url) as server:
            await server.has_since(0)
            demo.start()
            began_s = time.time()
            await asyncio.sleep(seconds)
            picture = await _picture(server, began_s, seconds)
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(picture, encoding="utf-8")


async def _picture(server: Prometheus, began_s: float, seconds: int) -> str:
    asked = _Asked(server, began_s, seconds)
    parts, y = [], float(TOP)
    figures = [panel for panel in PANELS.values() if panel["type"] == "stat"]
    for x, width, panel in _row(figures):
        parts.append(await asked.figure(Panel(x, y, width, 86, panel["title"]), panel))
    y += 86 + GAP
    for number, titles in enumerate(LINES):
        for x, width, title in _row(titles):
            parts.append(await asked.lines(Panel(x, y, width, 250, title), PANELS[title]))
        y += 250 + GAP
        if not number:
            parts.append(await asked.bars(Panel(GAP, y, (WIDTH - 3 * GAP) / 2, 190, BARS), PANELS[BARS]))
            parts.append(
                await asked.table(Panel(WIDTH / 2 + GAP / 2, y, (WIDTH - 3 * GAP) / 2, 190, TABLE), PANELS[TABLE])
            )
            y += 190 + GAP
    subtitle = f"askii demo, three tenants and everything else in one process, {seconds} seconds, scraped each second"
    return page(WIDTH, y, dashboard()["title"], subtitle, parts)


def _row(members: Any) -> Iterator[tuple[float, float, Any]]:
    """Places of panels side by side."""
    width = (WIDTH - GAP * (len(members) + 1)) / len(members)
    for number, member in enumerate(members):
        yield GAP + number * (width + GAP), width, member


class _Asked:
    """Panels filled with what the server answers."""

    def __init__(self, server: Prometheus, began_s: float, seconds: int) -> None:
        self._server, self._began_s, self._seconds = server, began_s, seconds

    def _expr(self, target: dict[str, Any]) -> str:
        return Query("", target["expr"]).filled(__rate_interval="10s", __range=f"{self._seconds}s")

    async def figure(self, card: Panel, panel: dict[str, Any]) -> str:
        found = await self._server.query(self._expr(panel["targets"][0]))
        value = found[0][1] if found else None
        unit = panel["fieldConfig"]["defaults"]["unit"]
        alarming = "red" in str(panel["fieldConfig"]["defaults"]["thresholds"])
        good = unit == "bool_on_off" if value else unit != "bool_on_off"
        return card.figure(value, unit, *([GREEN if good else RED] if alarming else []))

    async def lines(self, card: Panel, panel: dict[str, Any]) -> str:
        series = {}
        for target in panel["targets"]:
            data = await self._server.get(
                "query_range",
                query=self._expr(target),
                start=self._began_s,
                end=self._began_s + self._seconds,
                step=1,
            )
            for found in data["result"]:
                points = [(float(at) - self._began_s, float(value)) for at, value in found["values"]]
                series[_legend(target, found["metric"])] = [point for point in points if not math.isnan(point[1])]
        defaults = panel["fieldConfig"]["defaults"]
        stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
        return card.lines(dict(sorted(series.items())), defaults["unit"], self._seconds, stacked=stacked)

    async def bars(self, card: Panel, panel: dict[str, Any]) -> str:
        target = panel["targets"][0]
        found = await self._server.query(self._expr(target))
        return card.bars({_legend(target, labels): value for labels, value in found})

    async def table(self, card: Panel, panel: dict[str, Any]) -> str:
        names = panel["transformations"][1]["options"]["renameByName"]
        units = [override["properties"][0]["value"] for override in panel["fieldConfig"]["overrides"]]
        columns = [await self._server.by("tenant_id", self._expr(target)) for target in panel["targets"]]
        rows = [
            [tenant, *(FORMATS[unit](column[tenant]) for unit, column in zip(units, columns, strict=True))]
            for tenant in sorted(columns[0])
        ]
        head = ["Tenant", *(names[f"Value #{target['refId']}"] for target in panel["targets"])]
        return card.table(head, rows)


def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
    words = re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), target["legendFormat"])
    return words.strip() or "all"


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS))
