"""Make a trained adapter fit to be passed on: weights in bfloat16, half the size, with everything needed to use it.

`python -m memory_r1.rl.publish runs/answer/adapter DESTINATION`. Lost is what use in bfloat16 would
round away. Left out: the model card, which only the person who trained it can write.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import tyro

from memory_r1.errors import InputError
from memory_r1.memory.card import CARD

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def publish(adapter: Annotated[Path, tyro.conf.Positional], destination: Annotated[Path, tyro.conf.Positional]) -> None:
    """Copy an adapter, its weights rounded to bfloat16.

    Args:
        adapter: a folder that memory-r1 train wrote.
        destination: the folder to write; made where it is missing.

    Raises:
        InputError: `adapter` is no such folder.
    """
    import torch
    from safetensors.torch import load_file, save_file

    missing = [name for name in (_CONFIG, _WEIGHTS, CARD) if not (adapter / name).is_file()]
    if missing:
        raise InputError(f"{adapter}: {', '.join(missing)} missing, expected an adapter that memory-r1 train wrote")
    destination.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(adapter / _WEIGHTS).items()}
    save_file(weights, destination / _WEIGHTS, metadata={"format": "pt"})
    for name in (_CONFIG, CARD):
        shutil.copyfile(adapter / name, destination / name)


if __name__ == "__main__":
    tyro.cli(publish)
