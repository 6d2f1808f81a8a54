"""An embedder behind any OpenAI-compatible /v1/embeddings endpoint: OpenAI, vLLM, llama.cpp, Ollama, TEI.

Left out: the prompts that some models want before a question, vectors cut short (`dimensions`), and requests at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.endpoint import Endpoint
from memory_r1.errors import InputError

if TYPE_CHECKING:
    import openai


class EndpointEmbedder:
    """A model served elsewhere, known by its name there: the same name must always mean the same weights.

    Safe to share between threads. Nothing is sent before the first `embed` or `dimension`, nor is the address looked
    at: a bank can be opened, and searched with BM25, without the endpoint.

    Args:
        model, base_url, api_key, timeout_s, retries: as for `memory_r1.endpoint.Endpoint`.
        batch: texts per request; many servers take no more than 32.
        max_characters: only so many of a text count: an endpoint refuses what is longer than the model's window,
            which is 8,192 tokens at OpenAI.

    Raises:
        InputError: a number is out of range.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
        batch: int = 32,
        max_characters: int = 8000,
    ) -> None:
        if timeout_s <= 0 or retries < 0 or batch < 1 or max_characters < 1:
            raise InputError(
                f"got timeout_s {timeout_s}, retries {retries}, batch {batch}, max_characters {max_characters}: "
                "expected > 0, >= 0, >= 1, >= 1"
            )
        self.name = f"endpoint:{model}"
        self._batch, self._max_characters = batch, max_characters
        self._arguments = model, base_url, api_key, timeout_s, retries
        self._dimension: int | None = None

    @property
    def dimension(self) -> int:
        """The length of its vectors, which the first ones show; raises as `embed` does."""
        if self._dimension is None:
            self.embed(["dimension"])
        assert self._dimension is not None
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Floats:
        """One vector per text, in order, (N, D), brought to length 1.

        Raises:
            EndpointError: the endpoint is down, refuses, or answers something that is not a vector for each text.
            InputError: the base URL is no http(s) address.
            PolicyError: OpenAI's own endpoint without a key, or a key that no header can carry.
        """
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        texts = [text[: self._max_characters] for text in texts]
        batches = [texts[start : start + self._batch] for start in range(0, len(texts), self._batch)]
        return np.concatenate([self._vectors(self._ask(batch), len(batch)) for batch in batches])

    def _ask(self, texts: Sequence[str]) -> object:
        """The endpoint's JSON."""
        import openai

        create = self._client.embeddings.with_raw_response.create
        try:
            # "float" is named since the client's own choice, base64, is not understood everywhere
            body = create(model=self._endpoint.model, input=list(texts), encoding_format="float").text
        except openai.APIError as error:
            raise self._endpoint.explain(error) from None
        return self._endpoint.parse(body)

    @cached_property
    def _endpoint(self) -> Endpoint:
        return Endpoint(*self._arguments)

    @cached_property
    def _client(self) -> openai.OpenAI:
        return self._endpoint.client()

    def _vectors(self, reply: object, count: int) -> Floats:
        """Read the endpoint's JSON, of which nothing is taken for granted, (count, D)."""
        try:
            vectors = _unit_vectors(reply, count)
        except (ValueError, OverflowError) as error:  # JSON's integers know no end
            raise self._endpoint.error(f"answered {error}", "check that the model is an embedding model") from None
        if self._dimension not in (None, vectors.shape[1]):
            what = f"gave vectors of {vectors.shape[1]} numbers, before they had {self._dimension}"
            raise self._endpoint.error(what, "check that one model stands behind the name")
        self._dimension = vectors.shape[1]
        return vectors


def _unit_vectors(reply: Any, count: int) -> Floats:
    """The vectors of a reply in the order of the texts, (count, D); raises ValueError that says what came instead."""
    items = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{json.dumps(reply, ensure_ascii=False):.200}, expected a list under data")
    if len(items) != count:
        raise ValueError(f"{len(items)} vectors for {count} texts")
    indices = [place if item.get("index") is None else item["index"] for place, item in enumerate(items)]
    if sorted(map(repr, indices)) != sorted(map(repr, range(count))):
        raise ValueError(f"vectors for the texts {indices!r:.100}, expected each of 0 to {count - 1} once")
    rows = [item.get("embedding") for _, item in sorted(zip(indices, items, strict=True), key=lambda pair: pair[0])]
    for row in rows:
        if not isinstance(row, list) or not row or not all(type(number) in (int, float) for number in row):
            raise ValueError(f"{row!r:.100}, expected a list of numbers under embedding")
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"vectors of several lengths: {sorted({len(row) for row in rows})}")
    vectors = np.array(rows, dtype=np.float64)
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ValueError("a vector that is zero or not finite")
    unit: Floats = (vectors / lengths).astype(np.float32)
    return unit
