"""A run as one page: report.html, with its curves, replies over time, notes and settings. No network, no script.

The page is written from what lies in the run folder, at every checkpoint and at the end. Dialogues and replies are
untrusted: every text on the page is escaped, and the page forbids itself scripts and requests. Left out: anything
interactive, which TensorBoard does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from memory_r1.rl.identity import BESIDE
from memory_r1.rl.report import charts
from memory_r1.rl.report.glossary import meaning
from memory_r1.rl.run import journal
from memory_r1.rl.run.whole import whole_file

PAGE = "report.html"
_ALGORITHMS = ("sft", "grpo", "ppo")
_OPERATIONS = ("add", "update", "delete", "noop")
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "What it earns": ("reward", "reward/exact_match", "frac_no_signal"),
    "What it writes": ("completion_tokens", "truncated", "reward/distilled", "reward/retention", "reward/entries"),
    "How the policy moves": ("loss", "kl", "entropy_estimate", "clip_fraction", "grad_norm", "lr"),
    "How the sampler differs": ("sampler_gap", "sampler_gap_max", "importance_weight"),
    "What the critic sees": ("value_loss", "explained_variance", "critic_grad_norm", "critic_lr"),
}
_VAL = escape(meaning("val/..."))
_APART = {"iteration", "notes", "reward/well_formed", *(f"reward/{name}" for name in _OPERATIONS)}

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Panel:
    """A chart with its title, its names with their colours, and a line on how to read it."""

    title: str
    chart: str
    legend: Sequence[tuple[str, str]]
    reading: str


def write_page(run: Path) -> Path:
    """Write report.html from what is in the run folder; returns its path. The same folder gives the same page."""
    path = run / PAGE
    with whole_file(path) as partial:
        partial.write_bytes(
            _page(run).encode(errors="backslashreplace")
        )  # half an emoji in a reply is no reason to fail
    return path


def _page(run: Path) -> str:
    config = _config(run)
    ran = {name: journal.read(run / name / "metrics.jsonl") for name in _ALGORITHMS}
    agent = config.get("config", {}).get("agent", "an")
    body = [
        f"<h1>Training the {escape(str(agent))} agent</h1>",
        f'<p class="dim">{escape(run.resolve().name)} · begun {escape(str(config.get("time", "")))} · thin lines are '
        f"what was logged, thick ones a running mean; numbers appear under the pointer · val, greedy: {_VAL}</p>",
        *(part for name, lines in ran.items() if lines for part in _algorithm(name, lines)),
        *_samples({name: journal.read(run / name / "samples.jsonl") for name in ran}),
        *_provenance(config),
    ]
    return _DOCUMENT.replace("BODY", "\n".join(body))


def _config(run: Path) -> dict[str, Any]:
    path = run / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return config


# Curves


def _algorithm(name: str, lines: Lines) -> Iterator[str]:
    """The part of the page about one algorithm."""
    yield f"<h2>{name.upper()}</h2>"
    yield f'<p class="dim">{_summary(lines)}</p>'
    for line in lines:
        for note in line.get("notes", ()):
            yield f'<p class="note">{escape(str(note))}</p>'
    for title, panels in _sections(lines):
        shown = "".join(_card(panel) for panel in panels if panel.chart)
        if shown:
            yield f'<h3>{title}</h3>\n<div class="grid-of">{shown}</div>'


def _summary(lines: Lines) -> str:
    """How far, how long, and what val said."""
    done, seconds = lines[-1]["iteration"], sum(line.get("seconds", 0.0) for line in lines)
    parts = [f"{done} iterations", f"{seconds / 60:.1f} minutes without checks on val"]
    checks = [(line["iteration"], line["val/reward"]) for line in lines if "val/reward" in line]
    if checks:
        best = max(checks, key=lambda check: check[1])
        parts.append(f"reward on val {checks[0][1]:.3f} at first, {best[1]:.3f} at best (iteration {best[0]})")
        parts.append(f"{checks[-1][1]:.3f} at last")
    return escape(" · ".join(parts))


def _sections(lines: Lines) -> Iterator[tuple[str, list[_Panel]]]:
    known = {name for names in _SECTIONS.values() for name in names} | _APART
    for title, names in _SECTIONS.items():
        panels = [_panel(lines, name) for name in names]
        if title == "What it writes":
            panels = [_failures(lines), _operations(lines), *panels]
        yield title, panels
    others = {name.replace("val/", "reward/") if name != "val/reward" else "reward" for line in lines for name in line}
    yield "The rest", [_panel(lines, name) for name in sorted(others - known)]


def _panel(lines: Lines, name: str) -> _Panel:
    """A metric as it is logged, and beside it the same of val, where there is one."""
    val = "val/reward" if name == "reward" else name.replace("reward/", "val/")
    series = {"sampled": _points(lines, name)}
    if val != name:
        series["val, greedy"] = _points(lines, val)
    return _Panel(name, charts.lines(series), _names(series), meaning(name))


def _failures(lines: Lines) -> _Panel:
    series = {
        name: [(x, 1 - y) for x, y in _points(lines, metric)]
        for name, metric in (("sampled", "reward/well_formed"), ("val, greedy", "val/well_formed"))
    }
    return _Panel("parse-failure rate", charts.lines(series), _names(series), meaning("reward/well_formed"))


def _operations(lines: Lines) -> _Panel:
    layers = {name.upper(): _points(lines, f"reward/{name}") for name in _OPERATIONS}
    return _Panel("operations", charts.stacked(layers), _names(layers), meaning("reward/add"))


def _points(lines: Lines, metric: str) -> list[tuple[float, float]]:
    return [(line["iteration"], line[metric]) for line in lines if isinstance(line.get(metric), int | float)]


def _names(series: Mapping[str, charts.Points]) -> list[tuple[str, str]]:
    """The legend: the names of what is drawn, each with its colour; none where all is sampled."""
    drawn = [(name, f"s{at}") for at, (name, points) in enumerate(series.items(), start=1) if points]
    return [] if drawn == [("sampled", "s1")] else drawn


def _card(panel: _Panel) -> str:
    legend = "".join(f'<span class="key {color}">{escape(name)}</span>' for name, color in panel.legend)
    heading = f"<figcaption><b>{escape(panel.title)}</b>{legend}</figcaption>"
    return f'<figure>{heading}{panel.chart}<p class="dim">{escape(panel.reading)}</p></figure>'


# Replies


def _samples(samples: Mapping[str, Lines]) -> Iterator[str]:
    """What was replied to the same few prompts, in the order of training."""
    replies: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for algorithm, lines in samples.items():
        for line in lines:
            replies.setdefault(line["episode"], []).append((algorithm, line))
    if not replies:
        return
    yield '<h2>Replies over time</h2><p class="dim">Greedy replies to the same few prompts at every check.</p>'
    for episode, given in replies.items():
        yield f"<h3>{escape(episode)}</h3>"
        yield f"<details><summary>the end of its prompt</summary><pre>{escape(given[0][1]['prompt'])}</pre></details>"
        rows = "".join(_row(algorithm, line) for algorithm, line in given)
        yield f"<table><tr><th>at</th><th>reply</th><th>reward</th></tr>{rows}</table>"


def _row(algorithm: str, line: Mapping[str, Any]) -> str:
    cut = ' <span class="dim">(cut at the token limit)</span>' if line["finish"] == "length" else ""
    where = f"{algorithm} {line['iteration']}"
    return f"<tr><td>{where}</td><td><pre>{escape(line['reply'])}</pre>{cut}</td><td>{line['reward']:.2f}</td></tr>"


# Where it comes from


def _provenance(config: Mapping[str, Any]) -> Iterator[str]:
    run = config.get("config", {})
    if not run:
        return
    yield "<h2>The run</h2>"
    facts = {
        "command": config["command"],
        "base model": run["base"],
        **{role: run[role] for role in BESIDE if role in run},
        "data": f"{run['data']['path']}, sha256 {run['data']['sha256']}",
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        "machine": f"{config['machine']}, Python {config['python']}",
    }
    yield _table(facts)
    settings = dict(_flat(run["settings"]))
    yield f"<details><summary>all {len(settings)} settings</summary>{_table(settings)}</details>"


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _table(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(n))}</th><td><code>{escape(str(v))}</code></td></tr>" for n, v in facts.items()
    )
    return f"<table>{rows}</table>"


_DOCUMENT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>memory-r1 training report</title>
<style>
:root { color-scheme: light dark; --ink: #1d2430; --dim: #5b6575; --page: #ffffff; --card: #f5f6f8; --line: #d9dde3;
  --note: #fff3d6; --s1: #0b66b8; --s2: #c2570c; --s3: #9c2f7f; --s4: #7d8794; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --dim: #9aa5b4; --page: #14181e; --card: #1d232b;
  --line: #333c48; --note: #4a3a10; --s1: #62b0f4; --s2: #f39a4d; --s3: #dd82c4; --s4: #8b95a3; } }
body { margin: 0 auto; max-width: 1240px; padding: 1rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; } h2 { margin: 2.2rem 0 0; } h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; }
.dim { color: var(--dim); margin: .2rem 0; } figure .dim { font-size: .8rem; line-height: 1.35; }
.note { background: var(--note); border-radius: 6px; padding: .5rem .8rem; }
.grid-of { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: .9rem; }
figure { margin: 0; padding: .7rem .8rem; background: var(--card); border-radius: 8px; }
figcaption { display: flex; flex-wrap: wrap; gap: .8rem; align-items: baseline; }
.key { font-size: .8rem; color: var(--dim); } .key::before { content: ""; display: inline-block; width: .7em;
  height: .7em; margin-right: .3em; border-radius: 2px; background: var(--c); }
svg { display: block; width: 100%; height: auto; margin-top: .3rem; }
.s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); } .s4 { --c: var(--s4); }
.line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; } .raw { opacity: .35; }
.line.raw { stroke-width: 1; } .dot { fill: var(--c); } .area { fill: var(--c); opacity: .85; }
.grid { stroke: var(--line); stroke-width: 1; } .tick { fill: var(--dim); font-size: 10.5px; }
table { border-collapse: collapse; width: 100%; margin: .4rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; } td:last-child { overflow-wrap: anywhere; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  font: .85rem/1.4 ui-monospace, monospace; }
details pre { background: var(--card); border-radius: 6px; padding: .6rem .8rem; }
summary { cursor: pointer; color: var(--dim); }
</style>
</head>
<body>
BODY
</body>
</html>
"""
