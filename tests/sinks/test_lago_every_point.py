"""Every point of what a sender to Lago must satisfy has tests that bear its number, or stands in the table here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
POINTS = range(1, 30)
ELSEWHERE = {
    27: [
        ("test_lago_signatures.py", "test_a_forged_webhook_is_401_and_does_nothing"),
        ("test_lago_signatures.py", "test_an_altered_or_truncated_body_is_401"),
        ("test_lago_replays.py", "test_a_replay_is_acknowledged_and_does_nothing"),
        ("test_lago_webhooks.py", "test_a_subscription_that_ends_suspends_and_one_that_starts_resumes"),
        ("test_lago_webhooks.py", "test_an_empty_wallet_suspends_and_a_settled_top_up_of_it_resumes"),
        ("test_lago_webhooks.py", "test_an_alert_is_told_and_counted"),
    ],
}
"""Points that a whole subject of its own proves."""


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_point_has_a_test() -> None:
    named = {
        int(found[1])
        for path in sorted((TESTS / "sinks").glob("test_*.py"))
        for name in _functions(path)
        if (found := re.match(r"test_point_(\d\d)_", name))
    }
    assert named <= set(POINTS)
    assert set(POINTS) - named == set(ELSEWHERE)


def test_the_tests_elsewhere_are_there() -> None:
    for point, tests in ELSEWHERE.items():
        for path, name in tests:
            assert name in _functions(TESTS / path), (point, path, name)
