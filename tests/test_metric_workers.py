"""The directory that workers share: agreed label sets, files of the dead, and every moment at which one can die."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from askii_middleware.metric_workers import DEAD_FILES, SharedSeries, WorkersMetrics

HELP = "Cost in USD"


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(folder: Path, pid: int | str, **usd: float) -> Path:
    """The file of a worker that has counted so much for each tenant."""
    path = folder / f"counter_{pid}.db"
    file: Any = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for tenant, amount in usd.items():
        key = mmap_key("llm_cost_usd", "llm_cost_usd_total", ["tenant_id"], [tenant], HELP)
        file.write_value(key, amount, 0.0)
    file.close()
    return path


def told(folder: Path) -> dict[str, float]:
    (family,) = WorkersMetrics(folder).families()
    assert (family.name, family.kind, family.text) == ("llm_cost_usd", "counter", HELP)
    return {name: value for name, value, _ in family.series}


def many_dead(folder: Path) -> dict[str, float]:
    for number in range(DEAD_FILES + 2):
        write(folder, 4_190_000 + number, a=1, b=number)  # beyond what the system gives
    write(folder, os.getpid(), a=5)
    return {
        'llm_cost_usd_total{tenant_id="a"}': DEAD_FILES + 7,
        'llm_cost_usd_total{tenant_id="b"}': sum(range(DEAD_FILES + 2)),
    }


def test_what_dead_workers_counted_ends_up_in_one_file_and_the_sums_stay(tmp_path: Path) -> None:
    sums = many_dead(tmp_path)
    for _ in range(2):
        assert told(tmp_path) == sums
        left = sorted(path.name for path in tmp_path.glob("*.db"))
        assert left == sorted(["counter_dead.db", f"counter_{os.getpid()}.db", "histogram_dead.db"])
    for number in range(DEAD_FILES + 1):
        write(tmp_path, 4_180_000 + number, a=2)
    sums['llm_cost_usd_total{tenant_id="a"}'] += 2 * (DEAD_FILES + 1)
    assert told(tmp_path) == sums
    assert len([*tmp_path.glob("*.db")]) == 3


def test_a_few_files_of_dead_workers_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, dead_pid(), a=1)
    write(tmp_path, os.getpid(), a=2)
    assert told(tmp_path) == {'llm_cost_usd_total{tenant_id="a"}': 3}
    assert len([*tmp_path.glob("*.db")]) == 2


class Killed(BaseException):
    """Nothing of ours catches it."""


@pytest.mark.parametrize("step", range(30))
def test_whenever_the_one_who_tidies_dies_nothing_is_lost_or_counted_twice(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = many_dead(tmp_path)
    steps = 0

    def dying(name: str) -> None:
        real = getattr(Path, name)

        def act(self: Path, *args: object, **options: object) -> object:
            nonlocal steps
            steps += 1
            if steps > step:
                raise Killed
            return real(self, *args, **options)

        monkeypatch.setattr(Path, name, act)

    for name in ("unlink", "replace", "write_text"):
        dying(name)
    try:
        assert told(tmp_path) == sums
    except Killed:
        monkeypatch.undo()
        assert told(tmp_path) == sums
    else:
        assert steps <= step
    monkeypatch.undo()
    assert told(tmp_path) == sums


def test_a_file_that_its_worker_is_just_making_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / f"counter_{os.getpid()}.db").touch()
    write(tmp_path, "77777777", a=1)
    assert told(tmp_path) == {'llm_cost_usd_total{tenant_id="a"}': 1}


def test_metrics_of_the_application_itself_are_its_own_to_show(tmp_path: Path) -> None:
    file: Any = MmapedDict(str(tmp_path / f"counter_{os.getpid()}.db"))  # type: ignore[no-untyped-call]
    file.write_value(mmap_key("app_requests", "app_requests_total", [], [], "Requests"), 3.0, 0.0)
    file.close()
    assert WorkersMetrics(tmp_path).families() == []


# Agreed label sets ---------------------------------------------------------------------------------------------------


def test_workers_agree_on_which_label_sets_have_series(tmp_path: Path) -> None:
    one, other = SharedSeries(tmp_path), SharedSeries(tmp_path)
    assert one.admits("m", ("a", "x"), 3)
    assert other.admits("m", ("b", "y"), 3)
    assert one.admits("m", ('c\n"', "é"), 3)
    for series in (one, other, SharedSeries(tmp_path)):
        assert not series.admits("m", ("d", "z"), 3)
        assert all(series.admits("m", values, 3) for values in (("a", "x"), ("b", "y"), ('c\n"', "é")))
        assert series.admits("another", ("d", "z"), 3)


def test_half_a_line_of_a_worker_that_was_killed_does_no_harm(tmp_path: Path) -> None:
    assert SharedSeries(tmp_path).admits("m", ("a",), 3)
    with (tmp_path / "askii_series.jsonl").open("ab") as file:
        file.write(b'["m", "tor')
    one, other = SharedSeries(tmp_path), SharedSeries(tmp_path)
    assert one.admits("m", ("b",), 3)
    assert other.admits("m", ("c",), 3)
    assert not one.admits("m", ("d",), 3)
    assert not other.admits("m", ("tor",), 3)
    assert one.admits("m", ("a",), 3)
