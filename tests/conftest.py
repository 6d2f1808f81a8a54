"""A tiny chat model for the tests of sampling and training: byte-level tokenizer, two random layers, seeded.

It is saved to a folder once and loaded from there, so that tests go through the same path as a real model. Left out:
anything that only one test file needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import settings

from memory_r1.policy.base import Completion, Message
from memory_r1.policy.local import LocalPolicy
from memory_r1.rl.model.learner import Learner, LearnerSettings
from memory_r1.rl.types import Reward

if TYPE_CHECKING:
    from torch import Tensor

# the same examples on every CI run; at a desk each run draws new ones, and what fails becomes a named @example
settings.register_profile("ci", derandomize=True)
settings.register_profile("desk", derandomize=False)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads: tiny tensors lose by threads on a busy machine

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def real_data(name: str) -> Path:
    """Where an official file lies; the test is skipped, and says so, where it is not found."""
    root = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"no {name} in {root}: set MEMORY_R1_DATA to its folder")
    return root / name


class Naive(Protocol):
    """Log-probabilities of one completion, written out: (T,), with gradient."""

    def __call__(
        self, model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
    ) -> Tensor: ...


@dataclass(frozen=True)
class Letters:
    """An episode that pays the share of ASCII letters in the reply, whatever was asked."""

    id: str

    @property
    def prompt(self) -> list[Message]:
        return [{"role": "user", "content": self.id}]

    def reward(self, completion: Completion) -> Reward:
        letters = sum(character.isascii() and character.isalpha() for character in completion.text)
        return Reward(letters / max(1, len(completion.text)), {"letters": letters})


def new_learner(folder: Path, lora_rank: int = 4, **settings: Any) -> Learner:
    """A learner on a freshly loaded model, computing in float32."""
    chosen = LearnerSettings(lora_rank=lora_rank, **{"precision": "float32", **settings})
    return Learner(LocalPolicy(folder, device="cpu"), chosen)


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny random model under new config values, with its tokenizer; returns the folder."""

    def save(**config: Any) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        folder = tmp_path_factory.mktemp("models") / "tiny"
        tokenizer = _tokenizer()
        end = tokenizer.eos_token_id
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end, "vocab_size": len(tokenizer)}
        # weights far larger than at birth, so that what a token attends to shows in its log-probabilities
        chosen = {"num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 2048}
        LlamaForCausalLM(LlamaConfig(**{**shape, **ids, **chosen, **config})).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_folder(save_tiny: Callable[..., Path]) -> Path:
    """The folder of the tiny model, for every test that only reads it."""
    return save_tiny()


@pytest.fixture(scope="session")
def ragged_folder(save_tiny: Callable[..., Path]) -> Path:
    """The tiny model with many end tokens, so that what it samples ends at different lengths."""
    return save_tiny(eos_token_id=list(range(50)))


@pytest.fixture
def tiny(tiny_folder: Path) -> LocalPolicy:
    """The tiny model, freshly loaded."""
    return LocalPolicy(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def naive_logprobs() -> Naive:
    """The oracle of every log-probability: one sequence, no cache, no mask, one softmax a token."""

    def score(model: Any, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> Tensor:
        import torch

        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
        scored = []
        for t, token in enumerate(completion):
            predicting = logits[len(prompt) + t - 1] / temperature  # the token before it predicts it
            scored.append(predicting[token] - torch.logsumexp(predicting, 0))
        return torch.stack(scored)

    return score


def _tokenizer() -> Any:
    """Bytes and a few merges, so that what is sampled need not be how its text is tokenised; pad is eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "s"), ("e", "r")]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    end = "<|im_end|>"
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)  # type: ignore[no-untyped-call]
    fast.chat_template = TEMPLATE
    return fast
