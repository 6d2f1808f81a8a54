"""The report: a page that shows what was logged, and on which nothing that was said or written can act."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from memory_r1.rl.report import charts
from memory_r1.rl.report.glossary import GLOSSARY, LINES, meaning
from memory_r1.rl.report.page import write_page

EVIL = "</pre></td><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;"
TRAINING = Path(__file__).parent.parent / "docs" / "training.md"


class Page(HTMLParser):
    """What a browser would make of the page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != [("style", {})]:
            self.text += data


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def sample(iteration: int, **changed: object) -> dict[str, object]:
    told = {"episode": "q1", "prompt": "Who?", "reply": "Rex", "reward": 0.5, "finish": "stop"}
    return {"iteration": iteration, **told, **changed}


def configure(run: Path, **changed: object) -> None:
    settings = {"algo": "grpo", "grpo": {"group": 8}}
    data = {"path": "mine.jsonl", "sha256": "79fa"}
    config = {"agent": "answer", "settings": settings, "base": "tiny", "data": data, **changed}
    versions = {"torch": "2.13.0"}
    told = {"command": "memory-r1 train", "versions": versions, "python": "3.11", "machine": "Linux", "time": "now"}
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps({**told, "config": config}), encoding="utf-8")


def page(run: Path) -> Page:
    return Page(write_page(run).read_text(encoding="utf-8"))


# What it shows


def test_each_metric_has_a_chart_with_its_points_and_its_line_of_the_glossary(tmp_path: Path) -> None:
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 0, "val/reward": 0.25}, {"iteration": 1, "kl": 0.125}])
    shown = page(tmp_path)
    assert sum(tag == "svg" for tag, _ in shown.tags) == 2
    for text in ("iteration 0: 0.25", "iteration 1: 0.125", meaning("kl"), meaning("reward")):
        assert text in shown.text


def test_val_stands_beside_what_was_sampled(tmp_path: Path) -> None:
    both = {"reward": 0.1, "val/reward": 0.2, "reward/right": 0.3, "val/right": 0.4}
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, **both}])
    shown = page(tmp_path)
    assert sum(tag == "svg" for tag, _ in shown.tags) == 2
    assert shown.tags.count(("span", {"class": "key s2"})) == 2
    assert all(f"iteration 1: {value}" in shown.text for value in both.values())


def test_parse_failures_are_what_is_left_of_the_well_formed(tmp_path: Path) -> None:
    write(tmp_path / "ppo" / "metrics.jsonl", [{"iteration": 1, "reward/well_formed": 0.75}])
    assert "parse-failure rate" in page(tmp_path).text
    assert "iteration 1: 0.25" in page(tmp_path).text


def test_operations_are_stacked(tmp_path: Path) -> None:
    """ADD 1 then 2, UPDATE 1 then 0 on top of it: UPDATE's area lies between 1 and 2, then closes at 2."""
    lines = [{"iteration": 1, "reward/add": 1, "reward/update": 1}, {"iteration": 2, "reward/add": 2}]
    write(tmp_path / "grpo" / "metrics.jsonl", lines)
    html = write_page(tmp_path).read_text(encoding="utf-8")
    areas = re.findall(r'<path class="area s(\d)" d="M([^"]*)Z"><title>(\w+)</title>', html)
    assert [name for _, _, name in areas] == ["ADD", "UPDATE", "DELETE", "NOOP"]
    heights = [[float(point.split()[1]) for point in path.split("L")] for _, path, _ in areas]
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    middle = (top + bottom) / 2
    assert heights[0] == [middle, top, bottom, bottom]
    assert heights[1] == [top, top, top, middle]
    assert heights[2] == [top, top, top, top]


def test_replies_to_a_prompt_stand_in_the_order_of_training(tmp_path: Path) -> None:
    write(tmp_path / "sft" / "samples.jsonl", [sample(0, reply="first"), sample(0, episode="q2", reply="apart")])
    write(tmp_path / "grpo" / "samples.jsonl", [sample(20, reply="last", reward=0.875, finish="length")])
    text = page(tmp_path).text
    order = [text.index(word) for word in ("q1", "Who?", "sft 0", "first", "grpo 20", "last", "0.88", "q2", "apart")]
    assert order == sorted(order)
    assert "(cut at the token limit)" in text[text.index("last") : text.index("q2")]


def test_where_the_run_comes_from_is_told(tmp_path: Path) -> None:
    configure(tmp_path)
    text = page(tmp_path).text
    for told in ("Training the answer agent", "memory-r1 train", "tiny", "79fa", "torch 2.13.0", "grpo.group8"):
        assert told in text


def test_notes_are_shown(tmp_path: Path) -> None:
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, "reward": 0.0, "notes": ["no signal"]}])
    assert ("p", {"class": "note"}) in page(tmp_path).tags
    assert "no signal" in page(tmp_path).text


def test_an_empty_folder_and_numbers_that_are_none_give_a_page(tmp_path: Path) -> None:
    assert not [tag for tag, _ in page(tmp_path).tags if tag == "svg"]
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, "loss": float("nan")}, {"iteration": 2, "loss": 3.5}])
    assert "iteration 2: 3.5" in page(tmp_path).text
    assert "nan" not in page(tmp_path).text


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, "loss": 1.5}])
    with (tmp_path / "grpo" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 2, "lo')
    assert "iteration 1: 1.5" in page(tmp_path).text


# What cannot act on it


def test_nothing_said_or_written_becomes_markup(tmp_path: Path) -> None:
    configure(tmp_path)
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, "loss": 1.0}])
    write(tmp_path / "grpo" / "samples.jsonl", [sample(1)])
    harmless = page(tmp_path)
    configure(tmp_path, agent=EVIL, base=EVIL, settings={EVIL: EVIL, "grpo": {"group": EVIL}})
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, "loss": 1.0, "notes": [EVIL]}])
    write(tmp_path / "grpo" / "samples.jsonl", [sample(1, episode=EVIL, prompt=EVIL, reply=EVIL)])
    attacked = page(tmp_path)
    kinds = {tag for tag, _ in harmless.tags} | {"p"}
    assert {tag for tag, _ in attacked.tags} <= kinds
    assert not {name for _, attributes in attacked.tags for name in attributes if name.startswith("on")}
    assert attacked.text.count(EVIL) >= 7  # read as what it is


def test_a_metric_of_an_evil_name_is_text(tmp_path: Path) -> None:
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, EVIL: 1.0}])
    assert EVIL in page(tmp_path).text
    assert not {"script", "img"} & {tag for tag, _ in page(tmp_path).tags}


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    write(tmp_path / "grpo" / "metrics.jsonl", [{"iteration": 1, "loss": 1.0}])
    html = write_page(tmp_path).read_text(encoding="utf-8")
    shown = Page(html)
    policy = next(attributes["content"] for _, attributes in shown.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert not {"src", "href"} & {name for _, attributes in shown.tags for name in attributes}
    assert "http:" not in html
    assert "https:" not in html


def test_half_an_emoji_in_a_reply_is_no_reason_to_fail(tmp_path: Path) -> None:
    write(tmp_path / "grpo" / "samples.jsonl", [sample(1, reply="half \ud83d")])
    assert "half \\ud83d" in page(tmp_path).text


# The glossary


def test_the_docs_list_the_glossary_word_for_word() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", TRAINING.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(tuple(re.findall(r"`(.*?)`", names)), text) for names, text in rows] == list(LINES)


def test_a_metric_has_one_line() -> None:
    assert len(GLOSSARY) == sum(len(names) for names, _ in LINES)
    assert meaning("val/exact_match") == GLOSSARY["val/..."]
    assert meaning("never logged") == ""


# Charts


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 1, [0, 0.5, 1]), (0.2, 0.34, [0.2, 0.25, 0.3, 0.35]), (-3, 12, [-5, 0, 5, 10, 15]), (0, 0, [0, 0.5, 1])],
)
def test_ticks_are_round_and_hold_what_is_drawn(low: float, high: float, wanted: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(wanted)


@pytest.mark.parametrize("value", [-4.0, 1e-9, 0.0, 0.3, 1e12])
def test_a_line_that_never_moves_is_drawn_within_its_frame(value: float) -> None:
    heights = [float(y) for y in re.findall(r'cy="([-\d.]+)"', charts.lines({"a": [(1, value), (2, value)]}))]
    assert len(heights) == 2
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for y in heights)


def test_a_running_mean_takes_the_neighbours_on_both_sides() -> None:
    assert charts.running_mean([(0, 0.0), (1, 3.0), (2, 6.0)]) == [(0, 1.5), (1, 3.0), (2, 4.5)]
