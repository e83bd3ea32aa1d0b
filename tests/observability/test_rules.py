"""The shipped rules: valid, tested by promtool, explained in the run book, and about metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from .conftest import Scrape
from .promql import QUERIES, Query, alerts, rules, selectors
from .running import program

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OF_PROMETHEUS = {"job", "instance"}
"""Labels that the scrape adds to every metric."""


def promtool(*arguments: str) -> None:
    done = subprocess.run([program("promtool"), *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault_in_the_rules() -> None:
    promtool("check", "rules", str(ROOT / "askii_middleware" / "observability" / "rules.yml"))


def test_every_alert_fires_does_not_fire_just_below_and_recovers() -> None:
    promtool("test", "rules", "rules_test.yml")
    tested = (HERE / "rules_test.yml").read_text()
    assert [rule["alert"] for rule in alerts() if f'alertname="{rule["alert"]}"' not in tested] == []


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_has_a_severity_says_what_is_wrong_and_where_to_read_on(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (\w+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == str(rule["alert"]).lower()
    assert rule["alert"] in headings


def test_the_run_book_has_no_section_without_an_alert_and_begins_with_the_exceeded_budget() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert headings[0] == "AskiiBudgetExceeded"
    assert sorted(headings) == sorted(rule["alert"] for rule in alerts())


def documented() -> dict[str, set[str]]:
    """The metrics of docs/metrics.md and their labels, from the first column of its tables and its histogram."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        place = line.split("|")[1] if line.startswith("| ") else line if line.startswith("`askii_overhead") else ""
        for name, _, labels in re.findall(r"`((?:llm|askii|budget)_\w+)(\{([\w,]+)\})?`", place):
            found[name] = set(labels.split(",")) - {""}
    for end in ("_bucket", "_sum", "_count"):
        found[f"askii_overhead_seconds{end}"] = found["askii_overhead_seconds"] | (
            {"le"} if end == "_bucket" else set()
        )
    del found["askii_overhead_seconds"]
    return found


RECORDED = {
    rule["record"]: {"job"}
    | {"tenant_id" for _ in re.findall("tenant", rule["record"])}
    | ({"scope", "period"} if "scope_period" in rule["record"] else set())
    for rule in rules()
    if "record" in rule
}
"""The recorded metrics; their labels stand in their names."""


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.place)
def test_every_expression_parses_and_reads_metrics_and_labels_that_exist(query: Query, scrape: Scrape) -> None:
    documents = documented()
    read = selectors(query.filled())
    assert read
    for name, labels in read.items():
        if name in RECORDED:
            assert labels <= RECORDED[name], name
            continue
        assert name in scrape.names, f"{name} is in no scrape of the demo"
        assert name in documents, f"{name} is not in docs/metrics.md"
        assert labels - OF_PROMETHEUS <= documents[name], name


def test_the_documented_metrics_are_those_of_a_scrape_with_their_labels(scrape: Scrape) -> None:
    documents = documented()
    assert set(documents) == scrape.names
    for name, labels in scrape.labels.items():
        if not name.endswith("_created"):
            assert labels == documents[name], name


def test_a_selector_without_its_label_is_noticed() -> None:
    assert selectors(
        'sum by (job) (rate(a_total{x="1"}[5m])) > 0 and max by (y) (max_over_time(b[1h:5m] offset 5m))'
    ) == {
        "a_total": {"job", "x"},
        "b": {"y"},
    }
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        selectors("sum by (")
