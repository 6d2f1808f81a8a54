"""GGUF weights, dequantised once: transformers takes many seconds for it, so the result is kept as a model folder.

The folder lies in MEMORY_R1_CACHE, else in the user's cache directory, under the file's name and content hash; it may
be deleted at any time. Left out: running quantised weights as they are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from memory_r1.errors import ModelError


def unpacked(gguf: Path, precision: str) -> Path:
    """The model folder with the dequantised weights of a GGUF file, made on first use (torch dtype `precision`).

    Raises:
        ModelError: no such file, not GGUF, or the cache cannot be written.
    """
    if not gguf.is_file():
        raise ModelError(f"{gguf}: no such file, expected GGUF weights")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = _cache() / f"{gguf.stem}-{precision}-{digest[:12]}"
    if not folder.is_dir():
        _convert(gguf, folder, precision)
    return folder


def _cache() -> Path:
    named = os.environ.get("MEMORY_R1_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memory-r1"


def _convert(gguf: Path, folder: Path, precision: str) -> None:
    """Convert beside the target and rename, so that the folder is whole or absent; the first of several wins."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"unpacking {gguf.name} (once)", file=sys.stderr)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="partial-") as partial:
            place = Path(partial) / folder.name
            options = {"gguf_file": gguf.name}
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **options)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), dtype=getattr(torch, precision), **options
            )
            model.hf_quantizer.remove_quantization_config(model)  # the weights are plain from here on
            model.save_pretrained(str(place))
            tokenizer.save_pretrained(str(place))
            if not folder.is_dir():
                shutil.move(place, folder)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{gguf}: cannot be unpacked to {folder} ({reason}): expected GGUF and a writable cache"
        ) from error
