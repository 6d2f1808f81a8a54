"""Log-probabilities and hidden states of the completions of one prompt, the prompt computed once.

The group becomes one sequence, prompt + completion 1 + ... + completion G, under a mask by which a completion sees the
prompt and itself; positions restart after the prompt. The head is computed where a completion token is predicted and
nowhere else. Same numbers and gradients as one sequence per completion (tested), at the cost of one prompt instead of
G. The technique is Prefix Grouper's (arXiv 2506.05433), here as a plain mask over the model's own attention.

Left out: models with sliding-window, recurrent or hybrid attention, which ignore such a mask: `supports_packing`
finds them out, and `plain_logprobs` serves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memory_r1.policy.decode import attends_to_all

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NOISE = 0.3  # of a leak's effect: what rounding may differ by; bfloat16 comes to an eighth, float32 to 1e-5


def packed_logprobs(
    model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, temperature: float = 1.0
) -> list[Tensor]:
    """Log-probability of every completion token, with gradient.

    Args:
        model: a causal language model of transformers.
        prompt: token ids, at least one.
        completions: G lists of token ids, none empty; lengths may differ.
        temperature: the logits are divided by it, as they were in sampling.

    Returns:
        G float32 tensors; tensor i has shape (T_i,), its entry t the log-probability of token t of completion i.
    """
    kept = _predicting(len(prompt), completions).to(model.device)
    logits = model(**_packed_inputs(model, prompt, completions), logits_to_keep=kept).logits[0]
    return _token_logprobs(logits, completions, temperature)


def packed_states(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Tensor:
    """The last hidden states from which the completions' tokens are predicted, with gradient, for a critic's head.

    Args:
        model, prompt, completions: as in `packed_logprobs`.

    Returns:
        (sum of T_i, H): the states before each token of the first completion, then of the second, and so on.
    """
    decoder = model.get_decoder()  # the model without its head; adapters are within
    states: Tensor = decoder(**_packed_inputs(model, prompt, completions)).last_hidden_state[0]
    return states[_predicting(len(prompt), completions).to(states.device)]


def plain_logprobs(
    model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, temperature: float = 1.0
) -> list[Tensor]:
    """The same as `packed_logprobs`, one sequence per completion: slower, and right for every model."""
    import torch

    rows = []
    for completion in completions:
        ids = torch.tensor([[*prompt, *completion[:-1]]], device=model.device)
        logits = model(input_ids=ids, logits_to_keep=len(completion), use_cache=False).logits[0]
        rows += _token_logprobs(logits, [completion], temperature)
    return rows


def plain_states(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Tensor:
    """The same as `packed_states`, one sequence per completion: slower, and right for every model."""
    import torch

    rows = []
    for completion in completions:
        ids = torch.tensor([[*prompt, *completion[:-1]]], device=model.device)
        rows.append(model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 :])
    return torch.cat(rows)


def supports_packing(model: Any) -> bool:
    """Whether packed and plain log-probabilities agree on a small probe; run once before training.

    The measure is what a leak would do in the model's own precision: a completion that sees the one before it.
    """
    import torch

    if not attends_to_all(model):
        return False  # a window longer than the probe would pass it
    vocabulary = model.config.get_text_config().vocab_size
    probe = [token % vocabulary for token in range(3, 203)]
    prompt, first, second = probe[:150], probe[150:170], probe[170:]
    with torch.inference_mode():
        packed = torch.cat(packed_logprobs(model, prompt, [first, second]))
        plain = torch.cat(plain_logprobs(model, prompt, [first, second]))
        leaked = plain_logprobs(model, [*prompt, *first], [second])[0]
    leak = (leaked - plain[len(first) :]).abs().mean()
    return bool((packed - plain).abs().mean() < NOISE * leak)


def _packed_inputs(model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> dict[str, Any]:
    import torch

    ids, positions, owner = _pack(prompt, completions)
    device = model.device
    if len(completions) == 1:  # plain causal attention, which needs no mask and computes no more than its half
        return {"input_ids": torch.tensor([ids], device=device), "use_cache": False}
    return {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
        "attention_mask": _mask(torch.tensor(owner, device=device), model.dtype),
        "use_cache": False,
    }


def _pack(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> tuple[list[int], list[int], list[int]]:
    """Ids, positions and owners (-1 the prompt, i completion i) of the packed sequence.

    The last token of a completion predicts nothing, so it is not fed.
    """
    ids, positions, owner = list(prompt), list(range(len(prompt))), [-1] * len(prompt)
    for number, completion in enumerate(completions):
        fed = list(completion[:-1])
        ids += fed
        positions += range(len(prompt), len(prompt) + len(fed))
        owner += [number] * len(fed)
    return ids, positions, owner


def _mask(owner: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, 1, L, L) additive mask: a token sees what is not after it and belongs to the prompt or to its own."""
    import torch

    length = owner.shape[0]
    earlier = torch.ones(length, length, dtype=torch.bool, device=owner.device).tril()
    visible = earlier & ((owner == -1).unsqueeze(0) | (owner.unsqueeze(1) == owner.unsqueeze(0)))
    mask = torch.zeros(length, length, dtype=dtype, device=owner.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min)[None, None]


def _predicting(prompt_length: int, completions: Sequence[Sequence[int]]) -> Tensor:
    """Positions whose logits score the completions' tokens, in order; the prompt's last one begins each."""
    import torch

    kept, start = [], prompt_length
    for completion in completions:
        kept += [prompt_length - 1, *range(start, start + len(completion) - 1)]
        start += len(completion) - 1
    return torch.tensor(kept)


def _token_logprobs(logits: Tensor, completions: Sequence[Sequence[int]], temperature: float) -> list[Tensor]:
    """(sum of T_i, V) logits -> log-probability of each completion's tokens."""
    import torch

    targets = torch.tensor([token for completion in completions for token in completion], device=logits.device)
    logprobs = -torch.nn.functional.cross_entropy(logits.float() / temperature, targets, reduction="none")
    return list(torch.split(logprobs, [len(completion) for completion in completions]))
