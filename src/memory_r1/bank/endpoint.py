"""An embedder behind any OpenAI-compatible /v1/embeddings endpoint: OpenAI, vLLM, llama.cpp, Ollama, TEI.

Retries, their backoff and Retry-After are the `openai` client's own work. Left out: the prompts that some models want
before a question, vectors cut short (`dimensions`), and requests at once.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.errors import EndpointError, InputError, PolicyError

if TYPE_CHECKING:
    import openai

_OPENAI_URL = "https://api.openai.com/v1"
_LOCAL_KEY = "none"  # servers without a key ignore it, but the client insists on one
_CONNECT_TIMEOUT_S = 5.0


class EndpointEmbedder:
    """A model served elsewhere, known by its name there: the same name must always mean the same weights.

    Safe to share between threads. Nothing is sent before the first `embed` or `dimension`, nor is the address looked
    at: a bank can be opened, and searched with BM25, without the endpoint.

    Args:
        model: the name the endpoint knows the model by.
        base_url: up to and including /v1; else MEMORY_R1_BASE_URL, OPENAI_BASE_URL, then OpenAI itself. A
            `user:password@` in it is sent as basic authentication, in place of the key, and shown nowhere.
        api_key: else MEMORY_R1_API_KEY, then OPENAI_API_KEY; may be absent unless the endpoint is OpenAI itself.
        timeout_s: seconds that one attempt may stay silent; connecting is given at most 5 of them.
        retries: further attempts after a timeout, a failed connection, or HTTP 408, 409, 429 or 5xx.
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
        self._model, self._batch, self._max_characters = model, batch, max_characters
        self._timeout_s, self._retries = timeout_s, retries
        self._base_url, self._api_key = base_url, api_key
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
            body = create(model=self._model, input=list(texts), encoding_format="float").text
        except openai.APIError as error:
            raise self._explain(error) from None
        try:
            return json.loads(body)
        except ValueError:
            raise self._error(f"answered with a body that is not JSON: {body!r}", "check the base URL") from None

    @cached_property
    def _address(self) -> tuple[str, str]:
        """The URL, fit to be shown, and the user:password that stood in it."""
        return _split(_first(self._base_url, "MEMORY_R1_BASE_URL", "OPENAI_BASE_URL") or _OPENAI_URL)

    @cached_property
    def _key(self) -> str:
        key = _first(self._api_key, "MEMORY_R1_API_KEY", "OPENAI_API_KEY")
        url, userinfo = self._address
        if key is None and urlsplit(url).hostname == "api.openai.com" and not userinfo:
            raise PolicyError(f"{url} needs an API key: set MEMORY_R1_API_KEY, or give another base URL")
        if key is not None and not (key.isascii() and key.isprintable()):
            raise PolicyError(
                "the API key holds characters no HTTP header can carry, expected printable ASCII: copy it again"
            )
        return key or _LOCAL_KEY

    @cached_property
    def _client(self) -> openai.OpenAI:
        import openai  # half a second, so only where it is used

        url, userinfo = self._address
        timeout = openai.Timeout(self._timeout_s, connect=min(self._timeout_s, _CONNECT_TIMEOUT_S))
        return openai.OpenAI(
            api_key=self._key,
            base_url=url,
            timeout=timeout,
            max_retries=self._retries,
            default_headers={"Authorization": f"Basic {_token(userinfo)}"} if userinfo else {},
        )

    def _vectors(self, reply: object, count: int) -> Floats:
        """Read the endpoint's JSON, of which nothing is taken for granted, (count, D)."""
        try:
            vectors = _unit_vectors(reply, count)
        except (ValueError, OverflowError) as error:  # JSON's integers know no end
            raise self._error(f"answered {error}", "check that the model is an embedding model") from None
        if self._dimension not in (None, vectors.shape[1]):
            what = f"gave vectors of {vectors.shape[1]} numbers, before they had {self._dimension}"
            raise self._error(what, "check that one model stands behind the name")
        self._dimension = vectors.shape[1]
        return vectors

    def _explain(self, error: openai.APIError) -> EndpointError:
        import openai

        attempts = f"attempts made: {self._retries + 1}"
        match error:
            case openai.APITimeoutError():
                return self._error(f"no answer within {self._timeout_s:g} s, {attempts}", "is the server overloaded?")
            case openai.APIConnectionError():
                reason = str(error.__cause__ or error)
                return self._error(f"cannot be reached ({reason}), {attempts}", "check that the server runs")
            case openai.APIStatusError():
                said = error.body.get("message", error.body) if isinstance(error.body, dict) else error.body
                what = f"HTTP {error.status_code}: {said or 'no explanation given'}"
                return self._error(what, "check the base URL, the model's name and the API key")
        return self._error(str(error), "check that it is an OpenAI-compatible endpoint")

    def _error(self, what: str, check: str) -> EndpointError:
        """One line without secrets. To be raised `from None`: a server may have echoed the key into the cause."""
        url, userinfo = self._address
        password = userinfo.partition(":")[2]
        secrets = {self._key, userinfo, _token(userinfo), password, unquote(password)} - {"", _LOCAL_KEY}
        for secret in sorted(secrets, key=len, reverse=True):
            what = what.replace(secret, "***")
        what = " ".join(what.split())
        what = what if len(what) <= 300 else f"{what[:300]}..."
        return EndpointError(f"{self.name} at {url}: {what}; {check}")


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


def _split(url: str) -> tuple[str, str]:
    """An address without its user:password, and that; raises InputError."""
    # the URL is not quoted: what is wrong with it may stand beside a password
    unusable = InputError("the base URL cannot be used, expected http(s)://host[:port]/path as in http://host:8000/v1")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise unusable from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise unusable
    userinfo, _, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}", userinfo


def _token(userinfo: str) -> str:
    """What basic authentication sends."""
    return b64encode(unquote(userinfo).encode()).decode()


def _first(argument: str | None, *variables: str) -> str | None:
    """The argument, else the first of the environment variables that is set and not blank."""
    values = (argument, *(os.environ.get(variable) for variable in variables))
    return next((value.strip() for value in values if value and value.strip()), None)
