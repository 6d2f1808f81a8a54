"""Draw a run's metrics.jsonl files as one PNG. Left out: anything interactive, which TensorBoard does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PANELS = {
    "sft": ("loss", "val/reward"),
    "grpo": ("reward", "val/reward", "reward/exact_match", "reward/well_formed", "kl", "frac_no_signal"),
    "ppo": ("reward", "val/reward", "reward/exact_match", "reward/well_formed", "kl", "explained_variance"),
}


def draw_curves(run: Path) -> Path:
    """Write curves.png in the run folder: a panel per metric of each algorithm that ran; returns its path."""
    from matplotlib.figure import Figure

    panels = [
        (f"{name}: {metric}", points)
        for name, metrics in _PANELS.items()
        for metric in metrics
        if (points := _points(run / name / "metrics.jsonl", metric))
    ]
    rows = max(1, -(-len(panels) // 3))
    figure = Figure(figsize=(12, 3 * rows), layout="constrained")
    places = list(figure.subplots(rows, 3, squeeze=False).flat)
    for empty in places[len(panels) :]:
        empty.set_axis_off()
    for axes, (title, points) in zip(places, panels, strict=False):
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("iteration", fontsize=8)
        axes.grid(alpha=0.3)
    path = run / "curves.png"
    figure.savefig(path, dpi=100)
    return path


def _points(path: Path, metric: str) -> list[tuple[int, float]]:
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["iteration"], line[metric]) for line in lines if metric in line]
