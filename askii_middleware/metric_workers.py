"""prometheus-client's multiprocess mode: several workers, each with files of its own in `PROMETHEUS_MULTIPROC_DIR`, and
any of them answers for all.

What the client library leaves to its users is done here: the workers agree on
which label sets have series, so that a metric's bound holds for all of them together; the files of workers that are
gone are added up in one, so that a thousand restarts leave two files and no counter ever falls; and a scrape reads all
files in one pass.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from .exposition import Family, series
from .metric_series import Series, Values

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
OURS = ("askii_", "llm_")
KINDS = ("counter", "histogram")
DEAD_FILES = 8
"""So many files of workers that are gone are left alone."""
KNOWN_KEYS = 50_000


def directory() -> Path | None:
    """Where the processes of this application meet; None where each counts for itself. Made if it does not exist."""
    if not getattr(values.ValueClass, "_multiprocess", False):  # chosen when prometheus-client was imported
        return None
    path = Path(os.environ[VARIABLE])
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """One process at a time has the file."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


class SharedSeries(Series):
    """Which label sets have series, in all processes of a directory. Only ever appended to, like the counters."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._read = 0

    def admits(self, group: str, values: Values, limit: int) -> bool:
        known = self._known.setdefault(group, set())
        if values in known or len(known) >= limit:
            return values in known
        with _locked(self._path / "askii_series.jsonl") as file:
            self._catch_up(file)
            if values in known or len(known) >= limit:
                return values in known
            line = json.dumps([group, *values]).encode() + b"\n"
            self._read += os.write(file, line)
        known.add(values)
        return True

    def _catch_up(self, file: int) -> None:
        data = b""
        while block := os.pread(file, 1 << 20, self._read + len(data)):
            data += block
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            with suppress(ValueError):  # half a line, of a worker that was killed while it wrote
                group, *found = json.loads(line)
                self._known.setdefault(group, set()).add(tuple(found))
        if len(whole) < len(data):
            os.write(file, b"\n")
            whole = data + b"\n"
        self._read += len(whole)


class _Key(NamedTuple):
    """What a value in a worker's file is called."""

    metric: str
    text: str
    series: str
    labels: dict[str, str]


class WorkersMetrics:
    """Our counters and histograms, summed over all workers, those that are gone too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: dict[str, _Key] = {}

    def families(self) -> list[Family]:
        with _locked(self._path / "askii_files.lock"):
            _finish(self._path)
            _tidy(self._path)
            counters, histograms = (_sums(_files(self._path, kind)) for kind in KINDS)
        return [*self._counters(counters), *self._histograms(histograms)]

    def _ours(self, sums: dict[str, float]) -> Iterable[tuple[_Key, float]]:
        for text, value in sums.items():
            key = self._keys.get(text)
            if key is None:
                if len(self._keys) >= KNOWN_KEYS:
                    self._keys.clear()
                metric, sample, labels, about = json.loads(text)
                key = self._keys[text] = _Key(metric, about, series(sample, labels), labels)
            if key.metric.startswith(OURS):
                yield key, value

    def _counters(self, sums: dict[str, float]) -> Iterable[Family]:
        found: dict[str, Family] = {}
        for key, value in self._ours(sums):
            if key.metric not in found:
                found[key.metric] = Family(key.metric, "counter", key.text, [])
            found[key.metric].series.append((key.series, value, None))
        return found.values()

    def _histograms(self, sums: dict[str, float]) -> Iterable[Family]:
        found: dict[str, Family] = {}
        buckets: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, float]] = {}
        totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for key, value in self._ours(sums):
            found.setdefault(key.metric, Family(key.metric, "histogram", key.text, []))
            rest = {name: text for name, text in key.labels.items() if name != "le"}
            child = key.metric, tuple(rest.items())
            if "le" in key.labels:
                buckets.setdefault(child, {})[key.labels["le"]] = value
            else:
                totals[child] = value
        for child, counts in buckets.items():
            name, labels = child
            told, count = found[name].series, 0.0
            for bound in sorted(counts, key=float):
                count += counts[bound]
                told.append((series(f"{name}_bucket", {**dict(labels), "le": bound}), count, None))
            told.append((series(f"{name}_count", dict(labels)), count, None))
            told.append((series(f"{name}_sum", dict(labels)), totals.get(child, 0.0), None))
        return found.values()


# Files ---------------------------------------------------------------------------------------------------------------


def _files(path: Path, kind: str) -> list[str]:
    found = glob.glob(str(path / f"{kind}_*.db"))  # noqa: PTH207 - texts, as the client library wants them
    return [file for file in found if Path(file).stat().st_size]  # else its worker is just making it


def _sums(files: Iterable[str]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for file in files:
        for key, value, _, _ in MmapedDict.read_all_values_from_file(file):  # type: ignore[no-untyped-call]
            sums[key] = sums.get(key, 0.0) + value
    return sums


def _tidy(path: Path) -> None:
    """Add up what dead workers have left, where that is much. A note of what will be done is the moment from which it
    counts: whoever comes after a crash goes on from it, so that nothing is counted twice or lost.
    """
    dead = {kind: [file for file in _files(path, kind) if not _is_alive(file)] for kind in KINDS}
    if sum(map(len, dead.values())) <= DEAD_FILES:
        return
    new = []
    for kind, files in dead.items():
        kept = path / f"{kind}_dead.db"
        sums = _sums([*files, *([str(kept)] if kept.exists() else [])])
        merged = f"{kept}.new"
        Path(merged).unlink(missing_ok=True)
        written: Any = MmapedDict(merged)  # type: ignore[no-untyped-call]
        for key, value in sums.items():
            written.write_value(key, value, 0.0)
        written.close()
        new.append(merged)
    note = path / "askii_tidying.json"
    draft = note.with_suffix(".draft")
    draft.write_text(json.dumps({"new": new, "gone": [file for files in dead.values() for file in files]}), "utf-8")
    draft.replace(note)
    _finish(path)


def _finish(path: Path) -> None:
    note = path / "askii_tidying.json"
    try:
        todo = json.loads(note.read_text("utf-8"))
    except FileNotFoundError:
        return
    for file in todo["new"]:
        with suppress(FileNotFoundError):
            Path(file).replace(file.removesuffix(".new"))
    for file in todo["gone"]:
        Path(file).unlink(missing_ok=True)
    note.unlink()


def _is_alive(file: str) -> bool:
    """Whether the process that a file is named after runs. The sums of the dead stay as if it did."""
    number = Path(file).stem.rpartition("_")[2]
    if not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
