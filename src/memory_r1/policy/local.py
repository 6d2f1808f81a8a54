"""A policy that runs here: any causal language model of transformers, with an optional LoRA adapter.

The model is a Hugging Face folder or id, a .gguf file (dequantised on loading), or, when none is named, the embedded
small model. Left out: JSON-schema decoding (`Sampling.schema` is ignored here, parsers stand behind every reply).
"""

from __future__ import annotations

import copy
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

from memory_r1.errors import ModelError, PromptError
from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.policy.decode import Sampled, sample_groups
from memory_r1.policy.embedded import EMBEDDED_HUB_NAME, embedded_model
from memory_r1.policy.gguf import unpacked

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]


class LocalPolicy:
    """A transformers model behind the `Policy` seam; loads on first use.

    Args:
        model: folder, .gguf file or hub id; None takes the embedded SmolLM2-135M-Instruct.
        adapter: folder of a PEFT adapter to put on the model.
        device: torch device; None takes a GPU where there is one.
        precision: of the weights; "auto" is bfloat16 where the machine computes it natively.
        batch_tokens: most padded prompt tokens that go through the model at once.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        device: str | None = None,
        precision: Precision = "float32",
        batch_tokens: int = 8192,
    ) -> None:
        self.embedded = model is None
        self.source = Path(model) if model is not None else embedded_model()
        self.adapter = Path(adapter) if adapter is not None else None
        self.version = 0  # who trains the weights counts their changes here
        self.device = device
        self.precision: Precision = precision
        self._batch_tokens = batch_tokens
        self._lock = RLock()
        self._model: Any = None
        self._tokenizer: Any = None
        if self.adapter is not None:
            _check_adapter(self.adapter)

    @property
    def name(self) -> str:
        """The model's name; with an adapter, its folder name and the first 8 digits of its weights' sha256."""
        if self.adapter is None:
            return self.base_name
        return f"{self.base_name}+{adapter_name(self.adapter)}"

    @property
    def base_name(self) -> str:
        """The model's name without the adapter."""
        return self.source.stem if self.source.suffix == ".gguf" else self.source.name

    @property
    def hub_name(self) -> str:
        """What other tools load the base by: its folder or hub id; the embedded model's is that of its original."""
        return EMBEDDED_HUB_NAME if self.embedded else str(self.source)

    @property
    def place(self) -> str:
        """The folder or hub id that transformers loads the base from; a .gguf file's is where it was unpacked.

        Raises:
            ModelError: no such model.
        """
        return _locate(self.source, self.dtype)

    @property
    def dtype(self) -> str:
        """The torch dtype of the weights, by name."""
        return _dtype(self.precision, self.device or _best_device())

    @property
    def model(self) -> Any:
        """The loaded transformers (or PEFT) model, in eval mode.

        Raises:
            ModelError: it is not installed, not a model, or cannot be loaded.
        """
        self._load()
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The loaded tokenizer; raises ModelError as `model` does."""
        self._load()
        return self._tokenizer

    @property
    def end_ids(self) -> frozenset[int]:
        """Token ids that end a completion: the tokenizer's and the model's, which may differ."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(token for token in [*ids, self.tokenizer.eos_token_id] if token is not None)

    def wrap(self, change: Callable[[Any], Any]) -> None:
        """Put something around the loaded model, such as an adapter to train; `change` gives the model to use."""
        self._model = change(self.model)

    def beside(self, adapter: str | Path | None) -> LocalPolicy:
        """A policy with another adapter, or none, on these very weights, which memory then holds once.

        They must stay as they are: whoever trains them, and not an adapter on them, trains the other policy as well.
        Call it before anything is put around this one's model. The adapter is not merged: a step costs a little more.

        Raises:
            ModelError: the model or the adapter cannot be loaded.
        """
        other = LocalPolicy(
            self.source, adapter=adapter, device=self.device, precision=self.precision, batch_tokens=self._batch_tokens
        )
        weights = {id(weight): weight for weight in self.model.parameters()}
        model = copy.deepcopy(self.model, weights)  # modules of its own over the same weights
        other.embedded, other._tokenizer = self.embedded, self.tokenizer
        other._model = _with_adapter(model, other.adapter, merge=False).eval() if other.adapter else model
        return other

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens under the model's chat template, up to where the reply begins.

        Text that spells one of the tokenizer's special tokens is broken up first, so that no content can end its
        message or open another.
        """
        messages = [{"role": m["role"], "content": self._defused(m["content"])} for m in prompt]
        return self._templated(messages)

    def _templated(self, messages: list[dict[str, str]]) -> list[int]:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise ModelError(f"{self.source}: has no chat template, expected an instruction-following model")
        try:
            encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        except TemplateError:  # some templates know no system role: its text then opens the first message
            if messages[0]["role"] != "system":
                raise
            merged = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
            return self._templated([merged, *messages[2:]])
        ids: list[int] = encoded["input_ids"]
        return ids

    def encode_all(self, prompts: Sequence[Prompt], max_tokens: int, context: int | None = None) -> list[list[int]]:
        """The tokens of several prompts that each leave room for a reply.

        Args:
            max_tokens: longest reply.
            context: longest prompt with its reply; None takes what the model was made for.

        Raises:
            PromptError: a prompt with its reply would be longer.
        """
        holds = context or getattr(self.model.config, "max_position_embeddings", None)
        encoded = [self.encode(prompt) for prompt in prompts]
        for number, ids in enumerate(encoded, start=1):
            if holds is not None and len(ids) + max_tokens > holds:
                raise PromptError(
                    f"prompt {number} has {len(ids)} tokens and its reply up to {max_tokens}, but {self.name} holds "
                    f"{holds}: retrieve fewer entries (--k) or use a model with a longer context"
                )
        return encoded

    def encode_reply(self, text: str) -> list[int]:
        """A reply's tokens as the policy would have written them, the end token last; for imitation."""
        ids: list[int] = self.tokenizer(self._defused(text), add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def _defused(self, text: str) -> str:
        added = self.tokenizer.added_tokens_decoder.values()  # all_special_tokens holds only those with a role
        return _defuse(text, [token.content for token in added if token.special and token.content.strip()])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of a completion's tokens, special tokens left out."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """One completion per prompt; see `Policy`."""
        return [group[0] for group in self.sample(prompts, sampling, n=1)]

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, n: int) -> list[list[Completion]]:
        """n completions of each prompt, with tokens and log-probabilities.

        Raises:
            ModelError: the model cannot be loaded.
            PromptError: a prompt with its completion exceeds the model's context.
        """
        encoded = self.encode_all(prompts, sampling.max_tokens)
        generator = self._generator(sampling.seed)
        groups: list[list[Completion]] = [[] for _ in encoded]
        with self._lock:
            for batch in _batches([len(ids) for ids in encoded], self._batch_tokens):
                sampled = sample_groups(
                    self.model,
                    [encoded[i] for i in batch],
                    n=n,
                    max_tokens=sampling.max_tokens,
                    temperature=sampling.temperature,
                    end_ids=self.end_ids,
                    generator=generator,
                )
                for i, group in zip(batch, sampled, strict=True):
                    groups[i] = [self.completion(len(encoded[i]), one) for one in group]
        return groups

    def completion(self, prompt_tokens: int, sampled: Sampled) -> Completion:
        """What was sampled after a prompt of so many tokens, with its text."""
        return Completion(
            text=self.decode(sampled.tokens).strip(),
            finish="stop" if sampled.ended else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(sampled.tokens),
            tokens=tuple(sampled.tokens),
            logprobs=tuple(sampled.logprobs),
        )

    def _generator(self, seed: int | None) -> torch.Generator | None:
        import torch

        return None if seed is None else torch.Generator(self.model.device).manual_seed(seed)

    def _load(self) -> None:
        with self._lock:
            if self._model is None:
                self._load_once()

    def _load_once(self) -> None:
        device = self.device or _best_device()
        model, self._tokenizer = _load_base(self.source, self.dtype)
        if self.adapter is not None:
            model = _with_adapter(model, self.adapter)
        self._model = model.to(device).eval()


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def adapter_name(adapter: Path) -> str:
    """An adapter's folder name and the first 8 digits of its weights' sha256; raises ModelError if it is none."""
    _check_adapter(adapter)
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    return f"{adapter.name}-{hashlib.sha256(weights).hexdigest()[:8]}"


def computes_bfloat16(device: str) -> bool:
    """Whether a torch device multiplies bfloat16 matrices natively, and so faster than float32 ones."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _dtype(precision: Precision, device: str) -> str:
    """The torch dtype's name."""
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def _load_base(source: Path, dtype: str) -> tuple[Any, Any]:
    try:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ModelError("a local model needs torch and transformers: pip install 'memory-r1[local]'") from error
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    place = _locate(source, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        model = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{source}: cannot be loaded as a language model ({reason}): name a folder with config.json and weights, "
            "a .gguf file, or a hub id"
        ) from error
    return model, tokenizer


def _locate(source: Path, dtype: str) -> str:
    """The folder or hub id that transformers loads."""
    if source.suffix == ".gguf":
        return str(unpacked(source, dtype))
    if source.is_dir() and not (source / "config.json").is_file():
        raise ModelError(f"{source}: not a model folder, expected a config.json in it")
    if source.is_absolute() and not source.exists():
        raise ModelError(f"{source}: no such folder, expected a model")
    return str(source)


def _check_adapter(folder: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder}: not an adapter folder, expected {name} in it (written by memory-r1 train)")


def _with_adapter(model: Any, folder: Path, *, merge: bool = True) -> Any:
    try:
        from peft import PeftModel
        from safetensors import SafetensorError
    except ImportError as error:
        raise ModelError("an adapter needs peft: pip install 'memory-r1[train]'") from error
    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(model, str(folder))
            # merged into the base: nothing here trains it, and a step then costs what the base alone costs
            return adapted.merge_and_unload() if merge else adapted
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: the adapter does not fit the model ({reason}): use the base it names") from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that peft sets off by asking transformers about an attribute it has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _defuse(text: str, special: Sequence[str]) -> str:
    if not special:
        return text
    pattern = "|".join(re.escape(token) for token in special)
    return re.sub(pattern, lambda match: f"{match[0][0]} {match[0][1:]}", text)


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in order of length, cut so that rows times the longest stays within `batch_tokens`."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[i] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
