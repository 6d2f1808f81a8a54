"""The vectors of texts embedded lately: a question is searched for speaker by speaker, a fact searched for is added."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from memory_r1.bank.check import embedded
from memory_r1.bank.column import Floats
from memory_r1.bank.embed import Embedder

KEPT = 1024  # texts: 1.6 MB at 384 numbers each


class RecentVectors:
    """An embedder that is asked once for a text, as long as the text is among the last ones. Safe to share."""

    def __init__(self, embedder: Embedder, kept: int = KEPT) -> None:
        self.embedder, self._kept = embedder, kept
        self._vectors: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, texts: Sequence[str]) -> Floats:
        """One vector per text, in order, (N, D), at least one; the new ones are embedded in one batch.

        Raises:
            BankError: the embedder gave vectors of a wrong shape or length. PolicyError: its model failed.
        """
        with self._lock:
            known = {text: self._vectors[text] for text in texts if text in self._vectors}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, embedded(self.embedder, new), strict=True))
        with self._lock:
            for text in texts:
                self._vectors[text] = known[text]
                self._vectors.move_to_end(text)
            while len(self._vectors) > self._kept:
                self._vectors.popitem(last=False)
        return np.stack([known[text] for text in texts])
