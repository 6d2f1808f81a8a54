"""Curves: a picture of what was measured, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from memory_r1.rl.curves import draw_curves

PNG = b"\x89PNG\r\n\x1a\n"


def write(folder: Path, lines: Sequence[Mapping[str, float]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"iteration": i, **line}) + "\n" for i, line in enumerate(lines))
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[float, float]]]:
    """The points of each titled panel of the figure that is saved."""
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, path: Path, dpi: int) -> None:
        figures.append(figure)
        save(figure, path, dpi=dpi)

    monkeypatch.setattr(Figure, "savefig", kept)
    draw_curves(run)
    lines = {axes.get_title(): axes.get_lines() for axes in figures[0].axes if axes.get_lines()}
    data: dict[str, Any] = {title: found[0].get_data() for title, found in lines.items()}
    return {title: list(zip(*points, strict=True)) for title, points in data.items()}


def test_curves_are_a_png_in_the_run_folder(tmp_path: Path) -> None:
    write(tmp_path / "grpo", [{"reward": 0.1}, {"reward": 0.4}])
    path = draw_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    assert path.read_bytes().startswith(PNG)


def test_each_metric_of_each_algorithm_has_a_panel_with_its_own_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "sft", [{"loss": 2.0}, {"loss": 1.0}])
    write(tmp_path / "grpo", [{"val/reward": 0.2}, {"reward": 0.1, "kl": 0.0}, {"reward": 0.4, "val/reward": 0.5}])
    assert drawn(tmp_path, monkeypatch) == {
        "sft: loss": [(0, 2.0), (1, 1.0)],
        "grpo: reward": [(1, 0.1), (2, 0.4)],
        "grpo: val/reward": [(0, 0.2), (2, 0.5)],
        "grpo: kl": [(1, 0.0)],
    }


def test_a_run_without_metrics_gives_an_empty_picture(tmp_path: Path) -> None:
    assert draw_curves(tmp_path).read_bytes().startswith(PNG)
