"""What makes a run the same run: its config, which lies in its folder, and what its processes must agree on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory_r1.bench.dataset import Dataset
from memory_r1.bench.run import claim_folder, plain, provenance
from memory_r1.errors import TrainingError
from memory_r1.memory.card import Agent
from memory_r1.policy.local import LocalPolicy, adapter_name
from memory_r1.rl.run.whole import whole_file
from memory_r1.rl.settings import Others, TrainSettings
from memory_r1.rl.tasks.task import Task

Config = dict[str, object]

BESIDE = ("start", "manager", "answerer", "judge", "teacher", "trajectories")
"""What a config names beside the settings, the base and the data, as far as there is any."""


def config_of(agent: Agent, policy: LocalPolicy, dataset: Dataset, settings: TrainSettings, others: Others) -> Config:
    """The config of a run; raises ModelError where `others.start` is no adapter."""
    named = {role: getattr(others, role) for role in ("manager", "answerer", "judge", "teacher")}
    return {
        "agent": agent,
        "settings": plain(settings),
        "base": policy.base_name,
        "weights": policy.precision,
        "data": {"path": str(dataset.path), "sha256": dataset.sha256},
        **({"start": adapter_name(others.start)} if others.start else {}),
        **{role: one.name for role, one in named.items() if one},
        **({"trajectories": _sha256(settings.trajectories)} if settings.trajectories else {}),
    }


def claim(out: Path, config: Config) -> None:
    """Write config.json, or check that the one already there is the same run's; raises TrainingError."""
    path = out / "config.json"
    if path.is_file():
        if _identity_in(path) != _identity(config):
            raise TrainingError(f"{out} holds another run (agent, settings, models or data differ): name a new folder")
        return
    claim_folder(out)
    with whole_file(path) as partial:
        partial.write_text(json.dumps(provenance(config), indent=1), encoding="utf-8")


def lessons_hash(task: Task, config: Config) -> str:
    """A hash of what is trained on and how: the same in all processes, or their shares would not fit together."""
    asked = [(one.id, one.prompt) for one in (*task.episodes, *task.val)]
    return hashlib.sha256(repr((_identity(config), asked, task.demonstrations)).encode()).hexdigest()


def _identity_in(path: Path) -> tuple[object, ...]:
    try:
        return _identity(json.loads(path.read_text(encoding="utf-8"))["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is not the config of a training run: name a new folder") from error


def _identity(config: Mapping[str, Any]) -> tuple[object, ...]:
    """The config without where the data lay."""
    others = [config.get(name) for name in BESIDE]
    return config["agent"], config["settings"], config["base"], config["weights"], config["data"]["sha256"], *others


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
