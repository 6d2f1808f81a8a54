"""A vllm module that runs the tiny model: what the sampler asks of the real one, and how the real one answers.

Kept from it, as read in its source and seen in runs of it: log-probabilities are those before the temperature unless
asked otherwise; what was loaded under an adapter's id stays what that id means; the n completions of a prompt get the
seeds seed to seed + n - 1; an end token in the last place that there is room for counts as "length", as in some of its
versions; without a tokenizer nothing can be detokenised. Left out: batching, and everything that makes it fast.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from memory_r1.policy.decode import Sampled, sample_groups
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.model.packed import plain_logprobs


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    n: int
    temperature: float
    max_tokens: int
    seed: int | None
    logprobs: int
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    detokenize: bool


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass(frozen=True)
class Call:
    """One call of `generate`."""

    prompts: list[list[int]]
    params: list[SamplingParams]
    adapter: LoRARequest


@dataclass
class Record:
    """What the module was asked for, and how it is told to fail or to differ.

    shift     added to every log-probability, as if the engine computed otherwise
    refusal   raised when the engine starts
    finish    in place of every finish_reason
    """

    started: list[Mapping[str, Any]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    shift: float = 0.0
    refusal: Exception | None = None
    finish: str | None = None


def install(monkeypatch: pytest.MonkeyPatch, version: str = "0.33.0") -> Record:
    """Put the module where `import vllm` finds it; returns its record."""
    record = Record()

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            if record.refusal:
                raise record.refusal
            record.started.append({"model": model, **options})
            self._model, self._options = model, options
            self._adapters: dict[int, LocalPolicy] = {}

        def generate(
            self,
            prompts: Sequence[Mapping[str, list[int]]],
            sampling_params: Sequence[SamplingParams],
            *,
            use_tqdm: bool,
            lora_request: LoRARequest,
        ) -> list[Any]:
            call = Call([prompt["prompt_token_ids"] for prompt in prompts], list(sampling_params), lora_request)
            record.calls.append(call)
            fresh = LocalPolicy(self._model, adapter=lora_request.lora_path, device="cpu")
            model = self._adapters.setdefault(lora_request.lora_int_id, fresh).model
            pairs = zip(call.prompts, call.params, strict=True)
            given = [SimpleNamespace(outputs=self._outputs(model, ids, params)) for ids, params in pairs]
            record.outputs += given
            return given

        def _outputs(self, model: Any, ids: list[int], params: SamplingParams) -> list[Any]:
            assert self._options["skip_tokenizer_init"]
            assert not params.detokenize
            assert params.temperature > 0 or params.n == 1
            return [self._output(model, ids, params, number) for number in range(params.n)]

        def _output(self, model: Any, ids: list[int], params: SamplingParams, number: int) -> Any:
            seed = None if params.seed is None else torch.Generator().manual_seed(params.seed + number)
            ((one,),) = sample_groups(
                model,
                [ids],
                n=1,
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                end_ids=frozenset(params.stop_token_ids),
                generator=seed,
            )
            reason = "length" if len(one.tokens) == params.max_tokens else "stop"
            return SimpleNamespace(
                index=number,
                token_ids=one.tokens,
                logprobs=[
                    {token: SimpleNamespace(logprob=logprob)}
                    for token, logprob in zip(one.tokens, self._logprobs(model, ids, one), strict=True)
                ],
                finish_reason=record.finish or reason,
            )

        def _logprobs(self, model: Any, ids: list[int], one: Sampled) -> list[float]:
            logprobs = one.logprobs
            if self._options.get("logprobs_mode", "raw_logprobs") == "raw_logprobs":
                with torch.no_grad():
                    logprobs = plain_logprobs(model, ids, [one.tokens])[0].tolist()
            return [logprob + record.shift for logprob in logprobs]

    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    vars(vllm).update(LLM=LLM, SamplingParams=SamplingParams, __version__=version)
    vars(request).update(LoRARequest=LoRARequest)
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return record
