"""A line chart as SVG: few lines, few points, and nothing to install."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, log10

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 120, 50, 50
_COLOURS = ("#1f6feb", "#d1570a", "#2e8b57", "#8250df")


def chart(
    title: str, across: str, up: str, places: Sequence[float], lines: Mapping[str, Sequence[float]]
) -> str:
    """``lines`` by name over ``places``: these on a scale of powers of ten, the values from 0."""
    low, high = log10(min(places)), log10(max(places))
    step = _step(max(map(max, lines.values())))
    steps = ceil(max(map(max, lines.values())) / step)

    def x(place: float) -> float:
        return _LEFT + (log10(place) - low) / (high - low or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - value / (step * steps) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_LEFT, 25, title, size=15)]
    for number in range(steps + 1):
        height = y(step * number)
        parts.append(_line(_LEFT, height, _WIDTH - _RIGHT, height))
        parts.append(_text(_LEFT - 8, height + 4, f"{step * number:g}", "end"))
    for place in places:
        parts.append(_line(x(place), _TOP, x(place), _HEIGHT - _BOTTOM))
        parts.append(_text(x(place), _HEIGHT - _BOTTOM + 18, f"{place:,.0f}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, across, "middle"))
    parts.append(_text(_LEFT, _TOP - 10, up))
    for colour, (name, values) in zip(_COLOURS, lines.items(), strict=False):
        points = [(x(place), y(value)) for place, value in zip(places, values, strict=True)]
        path = " ".join(f"{left:.1f},{height:.1f}" for left, height in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
        )
        for (left, height), value in zip(points, values, strict=True):
            parts.append(f'<circle cx="{left:.1f}" cy="{height:.1f}" r="4" fill="{colour}"/>')
            parts.append(_text(left, height - 9, f"{value:.1f}", "middle", colour))
        parts.append(_text(points[-1][0] + 24, points[-1][1] + 4, name, colour=colour))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n' + "\n".join(parts) + "\n"
        "</svg>\n"
    )


def _step(most: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are four to ten of them."""
    power = 10.0 ** int(log10(most) - 1)
    return next(power * part for part in (1, 2, 5, 10, 20, 50, 100) if most / (power * part) <= 8)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", colour: str = "#333", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" '
        f'font-size="{size}">{escape(text)}</text>'
    )
