"""Charts as inline SVG: lines, and areas stacked on each other. Left out: what they show (report/page.py), and scripts.

A point's number appears when the pointer rests on it. Colours are the page's, so that a chart reads on light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22  # margins, for the numbers at the axes
SMOOTHED = 30  # points from which a running mean helps to see where a line goes

Points = Sequence[tuple[float, float]]


class _Frame:
    """Where a value stands in the picture: x over [first, last], y over the ticks around [low, high]."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self.first, self.last = min(xs), max(xs)
        self.ticks = ticks(min(ys), max(ys))

    def x(self, value: float) -> float:
        share = (value - self.first) / ((self.last - self.first) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def grid(self) -> Iterator[str]:
        """Lines and numbers of both axes."""
        for tick in self.ticks:
            y = self.y(tick)
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            yield f'<text class="tick" text-anchor="end" x="{LEFT - 5}" y="{y + 3:.1f}">{shown(tick)}</text>'
        for value, anchor in ((self.first, "start"), (self.last, "end")):
            yield f'<text class="tick" text-anchor="{anchor}" x="{self.x(value):.1f}" y="{HEIGHT - 6}">{value:g}</text>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{HEIGHT - 6}">iteration</text>'


def lines(series: Mapping[str, Points]) -> str:
    """A line for each name, the first one in the first colour; numbers that are not finite are left out.

    Returns:
        The SVG element; empty where there is nothing to draw.
    """
    drawn = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    everything = [point for points in drawn.values() for point in points]
    if not everything:
        return ""
    frame = _Frame([x for x, _ in everything], [y for _, y in everything])
    body = [part for at, points in enumerate(drawn.values()) for part in _line(frame, points, f"s{at + 1}")]
    return _svg([*frame.grid(), *body])


def stacked(layers: Mapping[str, Points]) -> str:
    """Areas on top of each other, the first at the bottom; a layer without a number at an iteration has 0 there."""
    xs = sorted({x for points in layers.values() for x, _ in points})
    if not xs:
        return ""
    heights = [[dict(points).get(x, 0.0) for x in xs] for points in layers.values()]
    tops = [[sum(rows) for rows in zip(*heights[: level + 1], strict=True)] for level in range(len(heights))]
    frame = _Frame(xs, [0.0, *tops[-1]])
    body, under = [], [0.0] * len(xs)
    for at, ((name, _), top) in enumerate(zip(layers.items(), tops, strict=True)):
        outline = [*zip(xs, top, strict=True), *reversed(list(zip(xs, under, strict=True)))]
        body.append(f'<path class="area s{at + 1}" d="{_path(frame, outline)}Z"><title>{name}</title></path>')
        under = top
    return _svg([*frame.grid(), *body])


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that hold [low, high] between the first and the last."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * by for by in (1, 2, 5, 10) if unit * by >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def shown(value: float) -> str:
    """A number in few digits."""
    return "0" if abs(value) < 1e-15 else f"{value:.4g}"


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Each point's mean with those around it, a fifteenth of all to either side."""
    reach = max(1, len(points) // 15)
    means = []
    for at, (x, _) in enumerate(points):
        near = [y for _, y in points[max(0, at - reach) : at + reach + 1]]
        means.append((x, sum(near) / len(near)))
    return means


def _line(frame: _Frame, points: Points, color: str) -> Iterator[str]:
    if len(points) >= SMOOTHED:
        yield f'<path class="line raw {color}" d="{_path(frame, points)}"/>'
        yield f'<path class="line {color}" d="{_path(frame, running_mean(points))}"/>'
    elif len(points) > 1:
        yield f'<path class="line {color}" d="{_path(frame, points)}"/>'
    radius = 2.5 if len(points) < SMOOTHED else 1.5
    faint = " raw" if len(points) >= SMOOTHED else ""
    for x, y in points:
        place = f'cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="{radius}"'
        yield f'<circle class="dot{faint} {color}" {place}><title>iteration {x:g}: {y:.4g}</title></circle>'


def _path(frame: _Frame, points: Points) -> str:
    return "M" + "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in points)


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
