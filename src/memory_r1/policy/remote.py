"""A policy behind any OpenAI-compatible /v1/chat/completions endpoint: OpenAI, vLLM, llama.cpp, Ollama, LM Studio.

Left out: streaming, log-probabilities (so no training on a remote policy) and proxies, for which the client reads the
usual environment variables.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from memory_r1.endpoint import Endpoint, refusal
from memory_r1.errors import InputError, PolicyError, PromptError
from memory_r1.policy.base import Completion, Prompt, Sampling

if TYPE_CHECKING:
    import openai

ResponseFormat = Literal["json_schema", "json_object", "none"]

_log = logging.getLogger(__name__)


class RemotePolicy:
    """A model served elsewhere. Safe to share between threads.

    Args:
        model, base_url, api_key, timeout_s, retries: as for `memory_r1.endpoint.Endpoint`.
        concurrency: requests in flight at once, over all callers.
        schema: how a sampling's JSON schema is sent. "auto" begins with "json_schema" and, when the endpoint refuses
            it, steps down to "json_object" and then "none", for this and all later prompts, with a logged warning; a
            format named here is kept, and its refusal is an error. max_tokens gives way to max_completion_tokens in
            the same manner, whatever this says.

    Raises:
        InputError: base_url is no http(s) address, or a number is out of range.
        PolicyError: OpenAI's own endpoint without a key, or a key that no header can carry.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 4,
        concurrency: int = 4,
        schema: Literal["auto"] | ResponseFormat = "auto",
    ) -> None:
        if timeout_s <= 0 or retries < 0 or concurrency < 1:
            raise InputError(
                f"got timeout_s {timeout_s}, retries {retries}, concurrency {concurrency}: expected > 0, >= 0, >= 1"
            )
        self._endpoint = Endpoint(model, base_url, api_key, timeout_s, retries)
        self._client = self._endpoint.client()
        self._dialect = _Dialect() if schema == "auto" else _Dialect(formats=(schema,))
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="memory-r1-remote")

    @property
    def name(self) -> str:
        """The model and the host that serves it, without credentials: "gpt-4.1-mini@api.openai.com"."""
        return f"{self._endpoint.model}@{self._endpoint.host}"

    def __repr__(self) -> str:
        return f"RemotePolicy({self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the policy cannot be used afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Ask for all prompts at once, at most `concurrency` in flight; completions come in the prompts' order.

        Raises:
            EndpointError: the endpoint is down, refuses, or answers no text; prompts not yet sent are dropped.
        """
        futures = [self._pool.submit(self._complete_one, prompt, sampling) for prompt in prompts]
        try:
            for future in as_completed(futures):
                future.result()  # the first failure ends the wait, whichever prompt it belongs to
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def _complete_one(self, prompt: Prompt, sampling: Sampling) -> Completion:
        return self._completion(self._endpoint.parse(self._send(prompt, sampling)))

    def _send(self, prompt: Prompt, sampling: Sampling) -> str:
        """One request, sent again in a humbler dialect as long as the endpoint refuses the one in use."""
        import openai

        create = self._client.chat.completions.with_raw_response.create
        # stream is named since not every server takes its absence for "no"
        request: dict[str, Any] = {"model": self._endpoint.model, "messages": list(prompt), "stream": False}
        dialect = self._dialect
        while True:
            fields = dialect.fields(sampling)
            try:
                body = create(**request, **fields).text
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                humbler = dialect.after_refusal(fields, str(error.body))
                if humbler is None:
                    raise self._explain(error) from None
                dialect = humbler
            except openai.APIError as error:
                raise self._explain(error) from None
            else:
                self._learn(dialect)
                return body

    def _learn(self, dialect: _Dialect) -> None:
        """Keep to what was understood; learnt only from success, as a refusal may have had another reason."""
        with self._lock:
            learnt = self._dialect.humbled_to(dialect)
            if learnt == self._dialect:
                return
            self._dialect = learnt
        _log.warning("%s refused fields of the request: from now on it is sent %s", self.name, learnt.description)

    def _completion(self, reply: object) -> Completion:
        """Read the endpoint's JSON, of which nothing is taken for granted."""
        text, finish = _dig(reply, "choices", 0, "message", "content"), _dig(reply, "choices", 0, "finish_reason")
        refusal = _dig(reply, "choices", 0, "message", "refusal")
        if refusal:
            raise self._unanswered(f"the model refused: {refusal}", "rephrase the text or use another model")
        if finish == "content_filter":
            raise self._unanswered("its content filter stopped the completion", "rephrase or use another model")
        if not isinstance(text, str) and finish == "length":
            what = "the token limit was reached before any text"
            raise self._unanswered(what, "raise max_tokens or switch reasoning off")
        if not isinstance(text, str):
            got = json.dumps(reply, ensure_ascii=False)
            expected = "expected text in choices[0].message.content: check the base URL and the model"
            raise self._endpoint.error(f"answered {got}", expected)
        return Completion(
            # half an emoji, which JSON can carry, becomes a replacement character: nothing could store or send it
            text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
            finish="length" if finish == "length" else "stop",
            prompt_tokens=_count(_dig(reply, "usage", "prompt_tokens")),
            completion_tokens=_count(_dig(reply, "usage", "completion_tokens")),
        )

    def _explain(self, error: openai.APIError) -> PolicyError:
        import openai

        if not isinstance(error, openai.APIStatusError):
            return self._endpoint.explain(error)
        if _too_long(error):
            return self._unanswered(refusal(error), "retrieve fewer entries or use a model with a longer context")
        return self._endpoint.error(refusal(error), _advice(error.status_code))

    def _unanswered(self, what: str, check: str) -> PromptError:
        return PromptError(self._endpoint.message(what, check))


@dataclass(frozen=True)
class _Dialect:
    """The request fields that endpoints disagree on: what to send first, then what to fall back to."""

    formats: tuple[ResponseFormat, ...] = ("json_schema", "json_object", "none")
    limits: tuple[str, ...] = ("max_tokens", "max_completion_tokens")  # OpenAI's reasoning models take the second only

    @property
    def description(self) -> str:
        return f"{self.limits[0]} and response_format {self.formats[0]}"

    def fields(self, sampling: Sampling) -> dict[str, Any]:
        """The request's fields besides model, messages and stream."""
        fields: dict[str, Any] = {"temperature": sampling.temperature, self.limits[0]: sampling.max_tokens}
        if sampling.seed is not None:
            fields["seed"] = sampling.seed
        if sampling.schema is not None and self.formats[0] != "none":
            fields["response_format"] = _response_format(self.formats[0], sampling.schema)
        return fields

    def after_refusal(self, fields: Mapping[str, Any], said: str) -> _Dialect | None:
        """The dialect to try next; None where the refusal is about something else or nothing humbler is left."""
        said = said.lower().replace("_", " ")
        if "max completion tokens" in said and len(self.limits) > 1:
            return replace(self, limits=self.limits[1:])
        about_format = any(words in said for words in ("response format", "json schema", "json object"))
        if about_format and "response_format" in fields and len(self.formats) > 1:
            return replace(self, formats=self.formats[1:])
        return None

    def humbled_to(self, other: _Dialect) -> _Dialect:
        """The humbler of both in each respect."""
        return _Dialect(min(self.formats, other.formats, key=len), min(self.limits, other.limits, key=len))


def _response_format(name: ResponseFormat, schema: Mapping[str, object]) -> dict[str, Any]:
    if name == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": dict(schema)}}


def _dig(value: Any, *path: str | int) -> Any:
    """Follow keys and indices down into JSON; None where the path leads nowhere."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _too_long(error: openai.APIStatusError) -> bool:
    """Whether the endpoint rejected the prompt for its length; endpoints say so in words alone."""
    said = refusal(error).lower()
    return error.status_code == 413 or (error.status_code == 400 and ("context" in said or "too long" in said))


def _advice(status: int) -> str:
    if status in (401, 403):
        return "check the API key (MEMORY_R1_API_KEY, else OPENAI_API_KEY) and what it may use"
    if status == 404:
        return "check the model's name and that the base URL ends in /v1"
    if status == 429:
        return "wait, lower the concurrency, or check the quota"
    if status >= 500:
        return "check the server's log, or try later"
    return "check what this endpoint and model accept"
