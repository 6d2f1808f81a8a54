"""Embedders that sentence-transformers runs on this machine: a model in a folder, or one of the Hugging Face hub.

Left out: the prompts that some models want before a question ("query: "), and code that comes with a model.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.errors import ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_PARTS = ("*.json", "*.txt", "*.model", "*.safetensors")  # what a model computes with; the rest are papers about it


class FolderEmbedder:
    """A sentence-transformers model in a folder, with its weights as safetensors; loaded on the first use.

    Its name ends in a fingerprint of the files, so that vectors of changed weights never mix with older ones. Moving
    the folder changes the name as well: a bank opens it from there.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(os.path.abspath(Path(folder).expanduser()))
        self._lock = threading.Lock()

    @cached_property
    def name(self) -> str:
        """ "folder:/models/mine#0f3a5b7c9d1e"; reads the files, about a second per GB; raises ModelError."""
        return f"folder:{self.folder}#{_fingerprint(self.folder)}"

    @cached_property
    def dimension(self) -> int:
        """The length of its vectors; loads the model, raises ModelError."""
        with self._lock:
            return int(unit_vectors(self._model, ["dimension"]).shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        """One vector per text, in order, (N, D); what is longer than the model's window is cut off.

        Raises:
            ModelError: the folder holds no such model, or sentence-transformers is not installed.
        """
        dimension = self.dimension
        with self._lock:  # a tokenizer refuses two threads at once
            return unit_vectors(self._model, texts).reshape(len(texts), dimension)

    @cached_property
    def _model(self) -> SentenceTransformer:
        return load(self.folder, "expected a folder that sentence-transformers has saved")


class HubEmbedder:
    """A sentence-transformers model of the Hugging Face hub; downloaded, where it is not yet, on the first use.

    Its name ends in the commit: later commits of the same model are other embedders.
    """

    def __init__(self, model: str, revision: str = "main") -> None:
        """`model` is the hub's id ("organisation/name"), `revision` a branch, tag or commit of it."""
        self._model, self._revision = model, revision

    @property
    def name(self) -> str:
        """ "hub:organisation/name@COMMIT"; raises ModelError."""
        return f"hub:{self._model}@{self._snapshot.folder.name}"

    @property
    def dimension(self) -> int:
        """The length of its vectors; loads the model, raises ModelError."""
        return self._snapshot.dimension

    def embed(self, texts: Sequence[str]) -> Floats:
        """As FolderEmbedder does; ModelError where the hub cannot be reached as well."""
        return self._snapshot.embed(texts)

    @cached_property
    def _snapshot(self) -> FolderEmbedder:
        try:
            from huggingface_hub import snapshot_download
        except ImportError as error:
            raise _not_installed(error) from error
        try:
            return FolderEmbedder(snapshot_download(self._model, revision=self._revision, allow_patterns=list(_PARTS)))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{self._model}: revision {self._revision} is not to be had from the hub ({_reason(error)}): check "
                "the id and the network, or name a folder"
            ) from error


def load(folder: Path, remedy: str) -> SentenceTransformer:
    """The model in a folder, ready to run; raises ModelError, which ends in the remedy."""
    try:
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise _not_installed(error) from error
    if not (folder / "modules.json").is_file():  # sentence-transformers would make something up
        raise ModelError(f"{folder}: no sentence-transformers model, modules.json is missing: {remedy}")
    try:
        with _no_progress_bar():
            return SentenceTransformer(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded as an embedding model ({_reason(error)}): {remedy}") from error


def unit_vectors(model: SentenceTransformer, texts: Sequence[str]) -> Floats:
    """One vector of length 1 per text, in order, (N, D)."""
    vectors = model.encode(list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
    unit: Floats = np.asarray(vectors, dtype=np.float32)
    return unit


def _fingerprint(folder: Path) -> str:
    """Of names and contents of the files that a model computes with."""
    digest = hashlib.sha256()
    try:
        for path in sorted(path for pattern in _PARTS for path in folder.rglob(pattern)):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read as an embedding model: {_reason(error)}") from error
    return digest.hexdigest()[:12]


def _not_installed(error: ImportError) -> ModelError:
    return ModelError(
        f"embedding needs sentence-transformers, which cannot be imported ({error}): pip install 'memory-r1[local]'"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


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
