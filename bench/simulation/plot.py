"""A drawing of a day: what was asked for, and what the box served of it, hour by hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 760, 300, 40
COLOURS = ("#888", "#2a7", "#36c", "#c63", "#939")


def drawing(hours: int, series: Mapping[str, Sequence[float]]) -> str:
    """An SVG. `series`: by title, the hour (as a real number) of each request that counts in it."""
    counts = {title: _by_hour(hours, times) for title, times in series.items()}
    most = max(max(each) for each in counts.values()) or 1
    parts = []
    for (title, each), colour, n in zip(counts.items(), COLOURS, range(len(counts)), strict=False):
        points = " ".join(f"{_x(hour, hours):.1f},{_y(count, most):.1f}" for hour, count in enumerate(each))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{MARGIN + 8}" y="{18 + 16 * n}" fill="{colour}">{title}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">hour of the day</text>')
    parts.append(f'<text x="4" y="{_y(most, most) + 4:.1f}">{most}/h</text>')
    style = 'font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {style}>'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>', *parts, "</svg>", ""])


def _by_hour(hours: int, times: Sequence[float]) -> list[int]:
    counts = [0] * hours
    for time in times:
        counts[min(int(time), hours - 1)] += 1
    return counts


def _x(hour: int, hours: int) -> float:
    return MARGIN + (WIDTH - 2 * MARGIN) * (hour + 0.5) / hours


def _y(count: float, most: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * count / most
