"""Completions by vLLM, with the weights of a LoRA adapter that is being trained elsewhere.

Tokens in, tokens out: prompts are encoded, end tokens chosen and replies decoded by the local policy; vLLM loads no
tokenizer. Log-probabilities are those at the sampling temperature. Whenever the weights have changed, the adapter is
saved into a folder of its own and requested under a new id, so that nothing vLLM has cached can stand for it. Left
out: full fine-tuning, several nodes.

Written against vLLM 0.32 and 0.33. 0.20 is the first that goes with transformers 5; long before it, up to 0.10.1, even
processed log-probabilities left the temperature out.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from memory_r1.errors import InputError, ModelError
from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.policy.decode import Sampled
from memory_r1.policy.local import LocalPolicy

OLDEST = (0, 20)
_RANKS = (8, 16, 32, 64, 128, 256, 512)  # that vLLM makes room for


@dataclass(frozen=True)
class VLLMSettings:
    """How vLLM runs beside the training.

    gpu_memory  share of the GPU's memory that it takes; the training needs the rest
    context     longest prompt with its reply that it makes room for, in tokens; 0 is the model's own, and costs most
    dtype       of its weights and products: the nearer to the training's, the smaller `sampler_gap`
    """

    gpu_memory: float = 0.4
    context: int = 0
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if not 0 < self.gpu_memory < 1:
            raise InputError(f"vllm.gpu_memory is {self.gpu_memory}, expected a share between 0 and 1, such as 0.4")
        if self.context < 0:
            raise InputError(f"vllm.context is {self.context}, expected 0 or above")


class Adapter(Protocol):
    """LoRA weights that change; `version` is another whenever they have."""

    @property
    def version(self) -> int: ...

    def save(self, folder: Path) -> None:
        """Write them as PEFT does."""
        ...


class VLLMSampler:
    """Samples with an adapter's weights as they are at each call; the engine starts with the first.

    Args:
        policy: the base model; its tokenizer, template and end tokens count, its weights are not used.
        adapter: the weights to follow.
        lora_rank: of the adapter.

    Raises:
        ModelError: vLLM is not installed, or too old.
        InputError: the rank is larger than vLLM serves.
    """

    def __init__(self, policy: LocalPolicy, adapter: Adapter, lora_rank: int, settings: VLLMSettings | None = None):
        require_vllm()
        self.version = -1
        self.settings = settings or VLLMSettings()
        self._policy = policy
        self._adapter = adapter
        self._room = served_rank(lora_rank)
        self._folder = tempfile.TemporaryDirectory(prefix="memory-r1-vllm-")  # goes with the sampler
        self._request: Any = None
        self._engine: Any = None

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens; see `LocalPolicy.encode`."""
        return self._policy.encode(prompt)

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, n: int) -> list[list[Completion]]:
        """n completions of each prompt, with tokens and log-probabilities; n is 1 at temperature 0.

        Raises:
            ModelError: the engine does not start, or breaks its promises about what it sampled.
            PromptError: a prompt with its completion exceeds the context.
        """
        encoded = self._policy.encode_all(prompts, sampling.max_tokens, self.settings.context or None)
        if self._engine is None:
            self._engine = self._start()
        outputs = self._engine.generate(
            [{"prompt_token_ids": ids} for ids in encoded],
            [self._params(sampling, n, first=place * n) for place in range(len(encoded))],
            use_tqdm=False,
            lora_request=self._current(),
        )
        return [
            [self._completion(len(ids), one) for one in output.outputs]
            for ids, output in zip(encoded, outputs, strict=True)
        ]

    def _start(self) -> Any:
        from vllm import LLM

        try:
            return LLM(
                model=self._policy.place,
                skip_tokenizer_init=True,
                dtype=self.settings.dtype,
                max_model_len=self.settings.context or None,
                gpu_memory_utilization=self.settings.gpu_memory,
                enable_lora=True,
                max_lora_rank=self._room,
                logprobs_mode="processed_logprobs",  # after the temperature; vLLM's own default is before
            )
        except (RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"vLLM does not start on {self._policy.base_name} ({reason}): see its log above; --vllm.gpu-memory and "
                "--vllm.context say how much memory it may take, --sampler local does without it"
            ) from error

    def _params(self, sampling: Sampling, n: int, first: int) -> Any:
        """How one prompt is sampled; vLLM adds 0 to n - 1 to the seed, so `first` keeps all completions apart."""
        from vllm import SamplingParams

        return SamplingParams(
            n=n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=None if sampling.seed is None else sampling.seed + first,
            logprobs=0,  # of the sampled token alone
            stop_token_ids=sorted(self._policy.end_ids),
            ignore_eos=True,  # no other token ends a completion
            detokenize=False,
        )

    def _current(self) -> Any:
        """The request for the weights as they are now, saved and named anew where they have changed."""
        from vllm.lora.request import LoRARequest

        version = self._adapter.version
        if self._request is None or version != self.version:
            shutil.rmtree(self._path(self.version), ignore_errors=True)  # loaded long since, and never asked for again
            self._adapter.save(self._path(version))
            self._request = LoRARequest(f"version-{version}", version + 1, str(self._path(version)))  # ids begin at 1
            self.version = version
        return self._request

    def _path(self, version: int) -> Path:
        return Path(self._folder.name) / f"version-{version}"

    def _completion(self, prompt_tokens: int, output: Any) -> Completion:
        """Its last token says whether it ended: to some versions of vLLM an end token in the last place is "length"."""
        tokens = list(output.token_ids)
        sampled = Sampled(tokens, ended=not self._policy.end_ids.isdisjoint(tokens[-1:]))
        if not sampled.ended and output.finish_reason != "length":
            raise ModelError(
                f"vLLM finished a completion of {len(tokens)} tokens with {output.finish_reason!r}, expected an end "
                "token or the token limit: try another version of vllm, or --sampler local"
            )
        sampled.logprobs = [place[token].logprob for token, place in zip(tokens, output.logprobs, strict=True)]
        if not all(map(math.isfinite, sampled.logprobs)):
            raise ModelError("vLLM gave a sampled token no finite log-probability: try another --vllm.dtype")
        return self._policy.completion(prompt_tokens, sampled)


def require_vllm() -> None:
    """Raise ModelError unless a vLLM of use is installed."""
    command = "pip install 'memory-r1[vllm]'"
    try:
        from vllm import __version__ as found
    except ImportError as error:
        raise ModelError(f"sampling with vLLM needs it installed ({error}): {command}") from error
    release = re.match(r"(\d+)\.(\d+)", found)  # builds from source may have none
    if release and OLDEST > tuple(map(int, release.groups())) > (0, 0):
        raise ModelError(f"vLLM {found} is installed, expected {'.'.join(map(str, OLDEST))} or later: {command}")


def served_rank(lora_rank: int) -> int:
    """The rank that vLLM is told to make room for; raises InputError for one that it does not serve."""
    for rank in _RANKS:
        if 0 < lora_rank <= rank:
            return rank
    raise InputError(
        f"lora_rank is {lora_rank}, expected 1 to {_RANKS[-1]}: vLLM samples with a LoRA adapter; without one (full "
        "fine-tuning, rank 0) use --sampler local"
    )
