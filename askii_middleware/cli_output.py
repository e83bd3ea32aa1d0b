"""What commands print: tables, objects, JSON, and on a terminal how far they have come."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import IO, Any

from .errors import AskiiError

Progress = Callable[[int], None]
"""Told how much is done so far."""
FEW_COLUMNS = 4
"""Up to so many, a table that is wider than the terminal is folded; beyond, each row becomes a list."""


def show(values: dict[str, Any] | list[dict[str, Any]], *, as_json: bool) -> None:
    """Print an object or a table: JSON; on a terminal a table of `rich`, where that is installed, or a list for each
    row where the table would not fit; else columns.
    """
    if as_json:
        print(json.dumps(values, indent=2, default=str))
    elif isinstance(values, dict):
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            print(f"{name:<{width}}  {_cell(value)}")
    elif values:
        columns = list(values[0])
        cells = [[_cell(row[c]) for c in columns] for row in values]
        if not (sys.stdout.isatty() and _rich_table(columns, cells)):
            widths = [max(len(c), *(len(row[i]) for row in cells)) for i, c in enumerate(columns)]
            for row in [columns, *cells]:
                print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    else:
        print("nothing")


def _rich_table(columns: list[str], cells: list[list[str]]) -> bool:
    """Whether it could be shown so."""
    try:
        from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only where it is shown
        from rich.console import Console  # noqa: PLC0415 - as above
        from rich.table import Table  # noqa: PLC0415 - as above
        from rich.text import Text  # noqa: PLC0415 - as above
    except ImportError:
        return False
    # Columns that say nothing would only take the room of those that do; pipes and JSON have them all.
    told = [place for place in range(len(columns)) if any(row[place] != "-" for row in cells)]
    names = {place: columns[place].replace("_", " ") for place in told}
    console = Console(highlight=False)
    least = {p: max(map(len, [*names[p].split(), *(row[p] for row in cells)])) for p in told}  # names fold at spaces
    if len(told) <= FEW_COLUMNS:
        least = {}
    elif sum(least.values()) + len("  ") * len(told) > console.width:  # cut into slivers, nobody could read it
        width = max(map(len, names.values()))
        for row in cells:
            lines = (Text.assemble((f"{names[place]:<{width}}  ", "bold"), row[place]) for place in told)
            console.print(*lines, "", sep="\n", soft_wrap=True)
        return True
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place in told:
        number = all(_is_number(row[place]) for row in cells)
        table.add_column(
            names[place], justify="right" if number else "left", overflow="fold", min_width=least.get(place)
        )
    for row in cells:
        table.add_row(*(Text(row[place]) for place in told))  # as text: what others named is no markup
    console.print(table)
    return True


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).removeprefix("-").isdigit()


def _cell(value: Any) -> str:
    return "-" if value is None else harmless(str(value))


def harmless(text: str, but: str = "") -> str:
    """Text for a terminal: what others named or answered must not move its cursor or turn its lines around."""
    return "".join(c if c.isprintable() or c in but else c.encode("unicode_escape").decode("ascii") for c in text)


def plain_text(amount: Decimal) -> str:
    """An exact decimal without an exponent or empty places."""
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


@contextlib.contextmanager
def lines_to(path: str | None, *, what: str) -> Iterator[IO[bytes]]:
    """A new file that only its owner can read, or standard output."""
    if path is None:
        yield sys.stdout.buffer
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise AskiiError(f"{what}: cannot create {path}: {error.strerror}") from None
    with os.fdopen(fd, "wb") as file:
        yield file


@contextlib.contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A line on standard error that moves while work is done, on a terminal where `rich` is installed. `what` is
    counted, such as "records read".
    """
    try:
        from rich.console import Console  # noqa: PLC0415 - only where it is shown
        from rich.progress import Progress as Bar  # noqa: PLC0415 - as above
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415 - as above
    except ImportError:
        yield lambda _done: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _done: None
        return
    columns = SpinnerColumn(), TextColumn("{task.completed:.0f} {task.description}"), TimeElapsedColumn()
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done: bar.update(task, completed=done)
