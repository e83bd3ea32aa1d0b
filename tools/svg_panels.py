"""Panels of a dashboard as plain SVG: lines, bars, single figures and a table, on a light background."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from xml.sax.saxutils import escape

INK, FAINT, GRID, CARD = "#1f2733", "#6b7686", "#e3e7ee", "#ffffff"
PALETTE = ("#2f72c4", "#e07b2e", "#2f9e5b", "#a349b8", "#c79a00", "#d0453b", "#1f9aa3", "#7a6a58")
GREEN, ORANGE, RED = "#2f9e5b", "#e08a1e", "#d0453b"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
CHAR_PX = 6.1
"""The mean width of a character at 11 px, for legends."""

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (seconds, value) by legend."""
Format = Callable[[float], str]


def _short(value: float) -> str:
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= bound:
            return f"{value / bound:.3g}{unit}"
    return f"{value:.3g}"


def _usd(value: float) -> str:
    return f"${value:,.0f}" if value >= 100 else f"${value:.4f}".rstrip("0").rstrip(".")


def _seconds(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:.1f} h"
    for bound, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= bound:
            return f"{value / bound:.3g} {unit}"
    return "0"


FORMATS: dict[str, Format] = {
    "currencyUSD": _usd,
    "short": _short,
    "reqps": lambda value: f"{_short(value)}/s",
    "s": _seconds,
    "percentunit": lambda value: f"{value:.1%}",
    "bool_on_off": lambda value: "On" if value else "Off",
}
"""By Grafana's name of a unit."""


def text(
    x: float, y: float, words: str, *, size: float = 11, fill: str = INK, anchor: str = "start", bold: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}" '
        f'font-weight="{bold}">{escape(words)}</text>'
    )


def rect(x: float, y: float, width: float, height: float, fill: str, *, radius: float = 0, stroke: str = "none") -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def page(width: float, height: float, title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The whole picture; panels begin 64 px below its top."""
    head = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="{escape(FONT)}" role="img">'
        ),
        f"<title>{escape(title)}</title>",
        rect(0, 0, width, height, "#f4f6f9"),
        text(20, 30, title, size=18, bold=600),
        text(20, 50, subtitle, size=12, fill=FAINT),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


class Panel:
    """A card with a title; the methods give what stands in it."""

    def __init__(self, x: float, y: float, width: float, height: float, title: str) -> None:
        self.x, self.y, self.width, self.height = x, y, width, height
        self._card = [
            rect(x, y, width, height, CARD, radius=6, stroke=GRID),
            text(x + 14, y + 22, title, size=12.5, bold=600),
        ]

    def figure(self, value: float | None, unit: str, colour: str = INK) -> str:
        words = "no data" if value is None else FORMATS[unit](value)
        middle = text(
            self.x + self.width / 2, self.y + self.height - 20, words, size=24, fill=colour, anchor="middle", bold=600
        )
        return "\n".join([*self._card, middle])

    def bars(self, shares: Mapping[str, float]) -> str:
        """Used shares of budgets, in the colours of the dashboard's thresholds."""
        step = min((self.height - 46) / max(len(shares), 1), 46)
        left, full = self.x + 110, self.width - 200
        parts = list(self._card)
        for place, (name, share) in enumerate(sorted(shares.items())):
            y = self.y + 40 + place * step
            colour = RED if share >= 0.99 else ORANGE if share >= 0.8 else GREEN
            parts += [
                text(left - 10, y + step / 2 + 2, name, anchor="end", size=12),
                rect(left, y + 4, full, step - 12, "#eef1f5", radius=3),
                rect(left, y + 4, max(full * min(share, 1.0), 2), step - 12, colour, radius=3),
                text(left + full + 10, y + step / 2 + 2, FORMATS["percentunit"](share), size=13, fill=colour, bold=600),
            ]
        return "\n".join(parts)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        parts = list(self._card)
        column = (self.width - 28) / len(head)
        for place, row in enumerate([head, *rows]):
            y = self.y + 50 + place * 30
            for number, cell in enumerate(row):
                x, anchor = (self.x + 14, "start") if not number else (self.x + 14 + column * (number + 1), "end")
                parts.append(
                    text(x, y, cell, anchor=anchor, size=12, fill=INK if place else FAINT, bold=400 if place else 600)
                )
            parts.append(rect(self.x + 14, y + 9, self.width - 28, 1, GRID))
        return "\n".join(parts)

    def lines(self, series: Series, unit: str, until_s: float, *, stacked: bool = False) -> str:
        """Series over the time from 0 to `until_s`; stacked ones upon one another as areas."""
        left, top, bottom = self.x + 62, self.y + 40, self.y + self.height - 52
        width = self.x + self.width - 18 - left
        drawn = (
            _stack(series) if stacked else {name: [(t, 0.0, v) for t, v in points] for name, points in series.items()}
        )
        highest = max((high for points in drawn.values() for _, _, high in points), default=0.0)
        step = _nice(highest / 4)
        ceiling = step * max(math.ceil(highest / step - 1e-9), 1)
        parts = list(self._card)

        def place(seconds: float, value: float) -> str:
            return f"{left + width * seconds / until_s:.1f},{bottom - (bottom - top) * value / ceiling:.1f}"

        for tick in range(round(ceiling / step) + 1):
            y = bottom - (bottom - top) * tick * step / ceiling
            parts += [
                rect(left, y, width, 1, GRID),
                text(left - 8, y + 4, FORMATS[unit](tick * step), anchor="end", fill=FAINT),
            ]
        for seconds in range(0, int(until_s) + 1, 15):
            end = "end" if seconds == until_s else "middle"
            parts.append(text(left + width * seconds / until_s, bottom + 16, f"{seconds} s", anchor=end, fill=FAINT))
        if not series:
            parts.append(text(left + width / 2, (top + bottom) / 2, "none", anchor="middle", fill=FAINT, size=13))
        for number, (_, points) in enumerate(drawn.items()):
            colour = PALETTE[number % len(PALETTE)]
            line = " ".join(place(t, high) for t, _, high in points)
            if stacked:
                floor = " ".join(place(t, low) for t, low, _ in reversed(points))
                parts.append(f'<polygon points="{line} {floor}" fill="{colour}" fill-opacity="0.25"/>')
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'
            )
        return "\n".join([*parts, *self._legend(list(series))])

    def _legend(self, names: Sequence[str]) -> list[str]:
        parts, x, y = [], self.x + 14.0, self.y + self.height - 14
        for number, name in enumerate(names):
            parts += [rect(x, y - 7, 12, 4, PALETTE[number % len(PALETTE)], radius=2), text(x + 17, y, name)]
            x += 17 + CHAR_PX * len(name) + 16
        return parts


def _stack(series: Series) -> dict[str, list[tuple[float, float, float]]]:
    """Each series upon those before it: time, lower and upper edge."""
    floor: dict[float, float] = {}
    drawn: dict[str, list[tuple[float, float, float]]] = {}
    for name, points in series.items():
        drawn[name] = [(t, floor.get(t, 0.0), floor.get(t, 0.0) + value) for t, value in points]
        floor |= {t: high for t, _, high in drawn[name]}
    return drawn


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
