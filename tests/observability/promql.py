"""The shipped dashboard and rules as data, and what their expressions read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser
import yaml

from askii_middleware.cli_grafana import DASHBOARD, RULES, shipped

VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$tenant": ".*", "${datasource}": "prometheus"}
"""What Grafana puts in the place of variables, for a parser that knows none."""


class Query(NamedTuple):
    """An expression and where it stands."""

    place: str
    text: str

    def filled(self, **variables: str) -> str:
        """The expression without variables; `variables` by name, without their dollar."""
        text = self.text
        for name, value in {**VARIABLES, **{f"${name}": value for name, value in variables.items()}}.items():
            text = text.replace(name, value)
        return text


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shipped(DASHBOARD))
    return found


def rules() -> list[dict[str, Any]]:
    """Recording and alert rules in their order."""
    return [rule for group in yaml.safe_load(shipped(RULES))["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard_queries() -> Iterator[Query]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield Query(f"panel {panel['title']} {target['refId']}", target["expr"])


def rule_queries() -> Iterator[Query]:
    for rule in rules():
        yield Query(f"rule {rule.get('alert') or rule['record']}", rule["expr"])


QUERIES = [*dashboard_queries(), *rule_queries()]


def selectors(text: str) -> dict[str, set[str]]:
    """The metrics that an expression reads, and the labels it matches, groups by or joins on for each of them. Raises
    ValueError where it does not parse.
    """
    found: dict[str, set[str]] = {}
    _read(promql_parser.parse(text), set(), found)
    return found


def _read(node: promql_parser.Expr, around: set[str], found: dict[str, set[str]]) -> None:
    """`around`: the labels of the aggregations around the node."""
    match node:
        case promql_parser.VectorSelector():
            assert node.name, "a selector without a metric's name reads everything"
            found.setdefault(node.name, set()).update(around, (m.name for m in node.matchers.matchers))
        case promql_parser.MatrixSelector():
            _read(node.vector_selector, around, found)
        case promql_parser.AggregateExpr():
            inner = set(node.modifier.labels) if node.modifier else set()
            for part in (node.expr, node.param):
                if part is not None:
                    _read(part, around | inner, found)
        case promql_parser.BinaryExpr():
            _read(node.lhs, around, found)
            _read(node.rhs, around, found)
        case promql_parser.Call():
            for part in node.args:
                _read(part, around, found)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr() | promql_parser.SubqueryExpr():
            _read(node.expr, around, found)
        case _:
            assert isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral), node
