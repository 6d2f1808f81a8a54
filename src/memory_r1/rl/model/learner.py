"""The policy being trained: its weights, its frozen reference, its critic, its optimizer and its checkpoints.

By default a LoRA adapter on the base model (arXiv 2106.09685); rank 0 trains every weight. The reference is the
policy as it was when `freeze_reference` was called: the base with adapters off where nothing was trained yet, else a
frozen copy of the adapter on the same base, or of the model. A critic begins as another such copy and is trained. Of
several processes (parallel.py) each has a learner, and a step sums the gradients of all. Left out: weights spread over
several devices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_r1.errors import TrainingError
from memory_r1.policy.base import Completion, Prompt, Sampling
from memory_r1.policy.local import LocalPolicy, Precision, computes_bfloat16, quiet_peft
from memory_r1.rl.model.critic import Critic
from memory_r1.rl.model.packed import (
    Beginning,
    common_beginning,
    packed_logprobs,
    packed_states,
    plain_logprobs,
    plain_states,
    supports_packing,
)
from memory_r1.rl.model.parallel import join
from memory_r1.rl.model.weights import check_shapes, fingerprint, new_optimizer, state_of, take_step, take_up

if TYPE_CHECKING:
    from torch import Tensor

_TRAINED, _REFERENCE, _CRITIC = (
    "default",
    "reference",
    "critic",
)  # PEFT saves the adapter called "default" without a subfolder


@dataclass(frozen=True)
class LearnerSettings:
    """How weights change.

    lora_rank      rank of the adapter's matrices; 0 trains all weights
    lora_alpha     scale of the adapter, divided by the rank
    precision      of the update's matrix products; "auto" is bfloat16 where the machine computes it natively
    max_grad_norm  longest gradient, by its norm over all weights
    checkpointing  keep one activation a layer and compute the others again in the backward pass: a third slower, and
                   the memory of an update no longer grows with layers times everything in a layer
    """

    lora_rank: int = 16
    lora_alpha: int = 32
    precision: Precision = "auto"
    max_grad_norm: float = 1.0
    checkpointing: bool = False


@dataclass
class _Begun:
    """What prompts begin with, and its keys and values by whose weights made them and whether with gradient."""

    tokens: list[int]
    made: dict[tuple[str, bool], Beginning] = field(default_factory=dict)


class Learner:
    """A local policy with an optimizer. The policy it was given samples with the weights being trained."""

    def __init__(self, policy: LocalPolicy, settings: LearnerSettings, *, start: Path | None = None, seed: int = 0):
        import torch

        if policy.adapter is not None:
            raise TrainingError("the policy carries an adapter already: give the base alone, and the adapter as start")
        self.world = join()
        self.policy = policy
        self.settings = settings
        torch.manual_seed(seed)
        if settings.checkpointing:
            _allow_checkpointing(policy.model)
        if settings.lora_rank:
            policy.wrap(lambda model: _with_lora(model, settings, start))
        elif start is not None:
            raise TrainingError("full fine-tuning starts from a model, not an adapter: leave the start out or use LoRA")
        self.model: Any = policy.model
        self.critic: Critic | None = None
        self._reference: Any = None
        self._packs = supports_packing(self.model)
        self._begun = _Begun([])
        self._weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = new_optimizer(self._weights)

    @property
    def version(self) -> int:
        """Of the weights: it grows with every optimizer step, and whenever other weights are taken up."""
        return self.policy.version

    @property
    def lora_rank(self) -> int:
        """Of the adapter, which one that was given as a start brings with it; 0 where all weights are trained."""
        return int(self.model.peft_config[_TRAINED].r) if self.settings.lora_rank else 0

    @property
    def name(self) -> str:
        """The base's name."""
        return self.policy.name

    @property
    def trainable(self) -> int:
        """How many numbers are trained."""
        return sum(weight.numel() for weight in self._weights)

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's tokens; see `LocalPolicy.encode`."""
        return self.policy.encode(prompt)

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, *, n: int) -> list[list[Completion]]:
        """n completions of each prompt with the weights as they are now, in their precision; see `LocalPolicy`."""
        with self.precision():
            return self.policy.sample(prompts, sampling, n=n)

    def logprobs(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[Tensor]:
        """Log-probabilities of the completions under the trained weights, with gradient; see rl/model/packed.py."""
        with self.precision(), self._checkpointed(self.model):
            if not self._packs:
                return plain_logprobs(self.model, prompt, completions, temperature=temperature)
            beginning = self._beginning(_TRAINED, self.model, prompt)
            return packed_logprobs(self.model, prompt, completions, temperature=temperature, beginning=beginning)

    def ref_logprobs(
        self, prompt: Sequence[int], completions: Sequence[Sequence[int]], temperature: float = 1.0
    ) -> list[Tensor]:
        """The same under the reference, without gradient; raises TrainingError before `freeze_reference`."""
        import torch

        if self._reference is None:
            raise TrainingError("there is no reference yet: call freeze_reference before training with a KL term")
        with torch.no_grad(), self.precision(), self._with_adapter(_REFERENCE, self._reference) as model:
            if not self._packs:
                return plain_logprobs(model, prompt, completions, temperature=temperature)
            beginning = self._beginning(_REFERENCE, model, prompt)
            return packed_logprobs(model, prompt, completions, temperature=temperature, beginning=beginning)

    @contextmanager
    def sharing(self, prompts: Sequence[Sequence[int]]) -> Iterator[None]:
        """Within it, what these prompts all begin with is computed once, by the policy, the reference and the critic.

        For the prompts of one optimizer step: the weights must not change within. A gradient has reached the weights
        when it is left, and not before.
        """
        self._begun, outer = _Begun(common_beginning(prompts)), self._begun
        try:
            yield
            with self.precision():
                for beginning in self._begun.made.values():
                    beginning.backward()
        finally:
            self._begun = outer

    def _beginning(self, weights: str, model: Any, prompt: Sequence[int]) -> Beginning | None:
        """What `sharing` is about, under these weights; None for a prompt that begins otherwise."""
        import torch

        tokens = self._begun.tokens
        if not tokens or self.settings.checkpointing or list(prompt[: len(tokens)]) != tokens:
            return None
        key = (weights, torch.is_grad_enabled())
        if key not in self._begun.made:
            self._begun.made[key] = Beginning(model, tokens)
        return self._begun.made[key]

    def freeze_reference(self) -> None:
        """Take the weights as they are now for the reference."""
        if self.settings.lora_rank:
            self._reference = self.model
            if not self._is_base():
                self._copy_adapter(_REFERENCE)
        else:
            self._reference = copy.deepcopy(self.model).requires_grad_(False)

    def add_critic(self) -> Critic:
        """A new critic in `critic`, its weights as the policy's are now, its head at zero."""
        if self.settings.lora_rank:
            self._copy_adapter(_CRITIC)
            body, named = self.model, {n: w for n, w in self.model.named_parameters() if _belongs(n, _CRITIC)}
        else:
            body = copy.deepcopy(self.model.get_decoder())
            named = dict(body.named_parameters())
        active = partial(self._with_adapter, _CRITIC, body)

        def states(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Tensor:
            with self.precision(), active() as model, self._checkpointed(model):
                if not self._packs:
                    return plain_states(model, prompt, completions)
                return packed_states(model, prompt, completions, beginning=self._beginning(_CRITIC, model, prompt))

        width = self.model.config.get_text_config().hidden_size
        longest = self.settings.max_grad_norm
        self.critic = Critic(states, active, named, width=width, max_grad_norm=longest, world=self.world)
        return self.critic

    def step(self, lr: float) -> float:
        """Clip the gathered gradients, take one optimizer step, forget them; returns their norm before the clip."""
        self.policy.version += 1
        return take_step(self.optimizer, lr, self.settings.max_grad_norm, self.world)

    def save(self, folder: Path) -> None:
        """Write the weights: a PEFT adapter, or the whole model with its tokenizer after full fine-tuning."""
        if self.settings.lora_rank:
            self.model.peft_config[_TRAINED].base_model_name_or_path = self.policy.hub_name
            self.model.save_pretrained(str(folder), selected_adapters=[_TRAINED], save_embedding_layers=False)
        else:
            self.model.save_pretrained(str(folder))
            self.policy.tokenizer.save_pretrained(str(folder))

    def load_weights(self, folder: Path) -> None:
        """Take the weights saved in `folder`, and forget the optimizer's moments: a new algorithm begins."""
        from safetensors.torch import load_file

        if self.settings.lora_rank:
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(self.model, load_file(folder / "adapter_model.safetensors"), _TRAINED)
        else:
            self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # tied heads are absent
        self.optimizer = new_optimizer(self._weights)
        self.policy.version += 1

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs beside its config: trained weights, reference weights, optimizer, critic."""
        critic = {"critic": self.critic.state()} if self.critic else {}
        return state_of(self._stateful(), self.optimizer) | critic

    def fingerprint(self) -> str:
        """A hash of all weights in `state`: equal in all processes that train one policy."""
        critic = self.critic.state()["weights"] if self.critic else {}
        return fingerprint([*self._stateful().values(), *critic.values()])

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state written by `state`; the reference must have been frozen, the critic added, if it was then.

        Raises:
            TrainingError: the state is of other weights; nothing has changed.
        """
        if ("critic" in state) != (self.critic is not None):
            raise TrainingError("the checkpoint and this run do not both have a critic: resume with the run's settings")
        if self._reference is not None and any(_belongs(name, _REFERENCE) for name in state["weights"]):
            self._copy_adapter(_REFERENCE)  # to be filled: this run's is the base itself so far
        check_shapes(state, self._stateful())
        if self.critic:
            self.critic.load_state(state["critic"])
        take_up(state, self._stateful(), self.optimizer)
        self.policy.version += 1

    def _stateful(self) -> dict[str, Tensor]:
        """The weights that a state holds, by name."""
        named = dict(self.model.named_parameters())
        if self.settings.lora_rank:
            return {n: w for n, w in named.items() if _belongs(n, _TRAINED) or _belongs(n, _REFERENCE)}
        if self._reference is not None:
            named |= {f"{_REFERENCE}.{name}": weight for name, weight in self._reference.named_parameters()}
        return named

    def _copy_adapter(self, target: str) -> None:
        """Give the adapter `target` the weights of the trained one; make it where there is none."""
        if target not in self.model.peft_config:
            self.model.add_adapter(target, self.model.peft_config[_TRAINED])
        weights = dict(self.model.named_parameters())
        for name, weight in weights.items():
            if _belongs(name, _TRAINED):
                weights[name.replace(f".{_TRAINED}.", f".{target}.")].data.copy_(weight.data)
        self._activate(_TRAINED)

    @contextmanager
    def _with_adapter(self, adapter: str, model: Any) -> Iterator[Any]:
        """The model with this adapter in use; a full copy is in use as it is."""
        if not self.settings.lora_rank:
            yield model
            return
        before = self.model.active_adapter
        try:
            if adapter in self.model.peft_config:
                self._activate(adapter)
                yield self.model
            else:  # a reference that is the base itself
                with self.model.disable_adapter():
                    yield self.model
        finally:
            self._activate(before)

    def _is_base(self) -> bool:
        """Whether the adapter changes nothing yet: one of its two factors is all zeros."""
        weights = self.model.named_parameters()
        return not any(bool(w.any()) for n, w in weights if ".lora_B." in n and _belongs(n, _TRAINED))

    @contextmanager
    def _checkpointed(self, model: Any) -> Iterator[None]:
        """Activations are computed again where a gradient will be wanted; never in sampling, whose cache forbids it."""
        import torch
        from transformers.modeling_layers import GradientCheckpointingLayer

        wanted = self.settings.checkpointing and torch.is_grad_enabled()
        layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)] if wanted else []
        try:
            for layer in layers:
                layer.training = True  # of the layer alone: what is in it, dropout included, stays as in use
            yield
        finally:
            for layer in layers:
                layer.training = False

    def _activate(self, adapter: str) -> None:
        self.model.set_adapter(adapter)
        for name, weight in self.model.named_parameters():  # gradients reach the trained ones whichever is in use
            if ".lora_" in name:
                weight.requires_grad_(not _belongs(name, _REFERENCE))

    def precision(self) -> AbstractContextManager[Any]:
        """The precision of the matrix products, for sampling and updating alike: both must see the same policy."""
        import torch

        device = self.model.device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self._low_precision(device))

    def _low_precision(self, device: str) -> bool:
        if self.settings.precision != "auto":
            return self.settings.precision == "bfloat16"
        return computes_bfloat16(device)


def _allow_checkpointing(model: Any) -> None:
    """Have the model's layers checkpoint their activations while they are in training mode; raises TrainingError."""
    if not model.supports_gradient_checkpointing:
        raise TrainingError(f"{type(model).__name__} knows no checkpointing: leave learner.checkpointing off")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.disable_input_require_grads()  # of use to re-entrant checkpointing alone


def _belongs(name: str, adapter: str) -> bool:
    """Whether a weight of this name is the adapter's."""
    return ".lora_" in name and f".{adapter}." in name


def _with_lora(model: Any, settings: LearnerSettings, start: Path | None) -> Any:
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError as error:
        raise TrainingError("training needs peft: pip install 'memory-r1[train]'") from error
    if hasattr(model, "peft_config"):
        raise TrainingError("the policy already carries an adapter: give the learner one of its own, without")
    if start is not None:
        with quiet_peft():
            return PeftModel.from_pretrained(model, str(start), is_trainable=True)
    # dropout stays 0: sampling, scoring and updating must see the same policy
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with quiet_peft():
        return get_peft_model(model, config)
