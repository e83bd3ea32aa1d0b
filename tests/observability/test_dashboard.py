"""`askii grafana`: the shipped dashboard is the generated one, whole, and speaks of what the metrics say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from askii_middleware.cli import main
from askii_middleware.cli_grafana import DASHBOARD, RULES, shipped
from tools.svg_panels import Panel, page

from .promql import dashboard, dashboard_queries
from .running import program

ROOT = Path(__file__).parents[2]


def test_the_shipped_dashboard_is_what_the_generator_writes() -> None:
    pytest.importorskip("grafana_foundation_sdk", reason="the dashboard is generated with grafana-foundation-sdk")
    from tools.build_dashboard import build  # noqa: PLC0415 - needs the package above

    assert build() == shipped(DASHBOARD), "run: python -m tools.build_dashboard"


def test_panels_fill_the_rows_without_overlap_and_have_ids_and_titles_of_their_own() -> None:
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert {y for _, y in taken} == set(range(max(y for _, y in taken) + 1))
    for member in ("id", "title"):
        assert len({panel[member] for panel in panels}) == len(panels)


def test_the_picture_of_it_in_the_docs_shows_panels_that_it_has() -> None:
    picture = ET.parse(ROOT / "docs" / "images" / "dashboard.svg")
    words = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    shown = [panel["title"] for panel in dashboard()["panels"] if panel["title"] in words]
    assert len(shown) > 12
    assert "no data" not in words
    assert {"acme", "globex", "initech"} <= set(words)


def test_names_that_callers_choose_stay_text_in_a_picture() -> None:
    series = {"</text><script>&": [(0.0, 0.0), (1.0, 2.0)]}
    drawn = page(10, 10, "<b>", "&", [Panel(0, 0, 400, 200, "<i>").lines(series, "short", 1.0)])
    words = [element.text for element in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert {"<b>", "&", "<i>", *series} <= set(words)


def test_every_query_goes_to_the_chosen_data_source() -> None:
    board = dashboard()
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == source
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert {name: variable["type"] for name, variable in variables.items()} == {
        "datasource": "datasource",
        "tenant": "query",
    }
    assert variables["tenant"]["datasource"] == source
    assert variables["tenant"]["query"]["query"] == "label_values(llm_cost_usd_total, tenant_id)"
    assert (variables["tenant"]["multi"], variables["tenant"]["includeAll"]) == (True, True)


def test_every_metric_with_a_tenant_is_narrowed_to_the_chosen_tenants() -> None:
    of_tenants = re.compile(r"\b(?:llm_\w+_total|budget_(?:remaining|limit|daily)\w*|job_tenant:[\w:]+)(\{[^}]*\})?")
    checked = 0
    for query in dashboard_queries():
        if query.place == "panel Budgets used up A":
            continue  # counts all of them
        for found in of_tenants.finditer(query.text):
            assert found[1] == '{tenant_id=~"$tenant"}', query
            checked += 1
    assert checked > 10


def test_totals_know_the_first_call_of_a_process_and_not_what_was_there_before(tmp_path: Path) -> None:
    (spend,) = [query for query in dashboard_queries() if query.place == "panel Spend A"]
    name = 'llm_cost_usd_total{instance="%s", tenant_id="acme"}'
    case = {
        "interval": "1m",
        "input_series": [
            {"series": name % "new", "values": "_x80 2x40"},
            {"series": name % "old", "values": "5x60 6x60"},
            {"series": name % "idle", "values": "7x120"},
        ],
        "promql_expr_test": [
            {"expr": f"round({spend.filled()}, 0.1)", "eval_time": "2h", "exp_samples": [{"labels": "{}", "value": 3}]}
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"evaluation_interval": "1m", "tests": [case]}))  # JSON is YAML
    done = subprocess.run([program("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_shows_what_the_issue_lists() -> None:
    text = " ".join(query.text for query in dashboard_queries())
    for metric in (
        *("llm_tokens_total", "llm_cost_usd_total", "llm_cost_askii_coins_total", "askii_fallbacks_total"),
        *("budget_remaining_usd", "budget_limit_usd", "askii_budget_remaining_usd", "budget_remaining_askii_coins"),
        *("askii_refusals_total", "usual_rate5m", "histogram_quantile(0.99", "askii_overhead_seconds_bucket"),
        *("askii_outbox_pending", "askii_sink_events_total", "askii_store_errors_total", "askii_store_up"),
    ):
        assert metric in text, metric


@pytest.mark.parametrize(("options", "name", "holds"), [((), DASHBOARD, "dashboard"), (("--rules",), RULES, "rules")])
def test_the_command_prints_or_writes_them(
    options: tuple[str, ...], name: str, holds: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grafana", *options]) == 0
    assert capsys.readouterr().out == shipped(name)
    target = tmp_path / "written"
    target.write_text("something longer, from before " * 10_000)
    assert main(["grafana", *options, "-o", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(target), "holds": holds}
    assert target.read_text() == shipped(name)


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "nowhere" / "dashboard.json"
    assert main(["grafana", "-o", str(target)]) == 1
    assert capsys.readouterr().err == f"askii: {target} cannot be written: No such file or directory\n"


def test_both_ship_in_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in (DASHBOARD, RULES):
            packed = archive.read(f"askii_middleware/observability/{name}")
            assert packed.decode() == shipped(name)
