"""Log-probabilities and hidden states of the completions of one prompt, the prompt computed once.

The prompt goes through the model alone and leaves its keys and values, with gradient; then the completions follow as
one sequence, completion 1 + ... + completion G, under a mask by which a token sees the prompt and its own completion;
positions restart after the prompt. The head is computed where a completion token is predicted and nowhere else. Same
numbers and gradients as one sequence per completion (tested), at the cost of one prompt instead of G. The technique is
Prefix Grouper's (arXiv 2506.05433), over the model's own attention: the prompt needs no mask, so only the causal half
of its attention is computed. What several prompts begin with, such as their instructions, can be computed once for all
(`Beginning`): each prompt's backward pass then ends at its keys and values, and one more takes what was gathered there
back to the weights. Gradient checkpointing keeps no keys and values; under it, prompt and completions are one
sequence under one mask, which costs the other half.

Left out: models with sliding-window, recurrent or hybrid attention, which ignore such a mask: `supports_packing`
finds them out, and `plain_logprobs` serves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memory_r1.policy.decode import additive, attends_to_all, common_length

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOLERANCE = 1e-3  # float32 log-probabilities of packed and plain differ by 1e-5 where the mask is honoured
LOW_TOLERANCE = 0.2  # the mean in bfloat16 is 0.07 in SmolLM2-135M
WORTH = 64  # tokens that prompts must share for a pass of their own to save time


def common_beginning(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that several prompts all begin with, one of each left over; none where they are not worth a pass."""
    return list(prompts[0][: common_length(prompts, WORTH)]) if prompts else []


class Beginning:
    """Keys and values of the tokens that several prompts begin with, computed once, on the weights as they are.

    Args:
        model: as in `packed_logprobs`, or its decoder.
        tokens: at least one.
    """

    def __init__(self, model: Any, tokens: Sequence[int]) -> None:
        import torch

        self.tokens = list(tokens)
        self._config = model.config
        cache = self._new_cache()
        ids = torch.tensor([self.tokens], device=model.device)
        model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)  # without the head
        self._made = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        self._leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in self._made]

    def cache(self) -> Any:
        """A cache that a prompt can go on from; what flows back into it is gathered."""
        cache = self._new_cache()
        for number in range(len(self._leaves) // 2):
            cache.update(self._leaves[2 * number], self._leaves[2 * number + 1], number)
        return cache

    def backward(self) -> None:
        """Take the gradients that were gathered back to the weights; once, after the last prompt's own pass."""
        import torch

        reached = [(made, leaf.grad) for made, leaf in zip(self._made, self._leaves, strict=True)]
        reached = [(made, gradient) for made, gradient in reached if gradient is not None]
        if reached:
            torch.autograd.backward([made for made, _ in reached], [gradient for _, gradient in reached])

    def _new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._config)


def packed_logprobs(
    model: Any,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    beginning: Beginning | None = None,
) -> list[Tensor]:
    """Log-probability of every completion token, with gradient.

    Args:
        model: a causal language model of transformers.
        prompt: token ids, at least one.
        completions: G lists of token ids, none empty; lengths may differ.
        temperature: the logits are divided by it, as they were in sampling.
        beginning: of this prompt, already computed; its own `backward` is left to the caller.

    Returns:
        G float32 tensors; tensor i has shape (T_i,), its entry t the log-probability of token t of completion i.
    """
    last, fed = _outputs(model, "logits", prompt, completions, beginning)
    first = _token_logprobs(last.expand(len(completions), -1), [one[0] for one in completions], temperature)
    later = _token_logprobs(fed, [token for one in completions for token in one[1:]], temperature)
    return _joined(first, later, completions)


def packed_states(
    model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, beginning: Beginning | None = None
) -> Tensor:
    """The last hidden states from which the completions' tokens are predicted, with gradient, for a critic's head.

    Args:
        model, prompt, completions, beginning: as in `packed_logprobs`.

    Returns:
        (sum of T_i, H): the states before each token of the first completion, then of the second, and so on.
    """
    import torch

    decoder = model.get_decoder()  # the model without its head; adapters are within
    last, fed = _outputs(decoder, "last_hidden_state", prompt, completions, beginning)
    return torch.cat(_joined(last.expand(len(completions), -1), fed, completions))


def plain_logprobs(
    model: Any, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, temperature: float = 1.0
) -> list[Tensor]:
    """The same as `packed_logprobs`, one sequence per completion: slower, and right for every model."""
    import torch

    rows = []
    for completion in completions:
        ids = torch.tensor([[*prompt, *completion[:-1]]], device=model.device)
        logits = model(input_ids=ids, logits_to_keep=len(completion), use_cache=False).logits[0]
        rows.append(_token_logprobs(logits, completion, temperature))
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
    """Whether a small probe, packed, gives what it gives plain, and no completion sees another; run before training.

    What a completion sees is told by changing the one before it, which must change nothing, in any precision.
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
        beside_another = packed_logprobs(model, prompt, [first[::-1], second])[1]
    seen = (beside_another - packed[len(first) :]).abs().max()
    rounding = TOLERANCE if model.dtype == torch.float32 else LOW_TOLERANCE
    return bool(seen < TOLERANCE) and bool((packed - plain).abs().mean() < rounding)


def _outputs(
    model: Any,
    name: str,
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    beginning: Beginning | None = None,
) -> tuple[Tensor, Tensor]:
    """The output called `name` at the prompt's last position (1, X) and at the M tokens fed behind it (M, X)."""
    import torch

    start, laid_out = len(prompt), torch.tensor(_laid_out(prompt, completions), device=model.device)
    ids, positions, owner = laid_out.unsqueeze(1)  # (1, prompt + M) each
    fed = ids.shape[1] - start
    done = len(beginning.tokens) if beginning else 0
    begun = {"past_key_values": beginning.cache()} if beginning else {}

    def last(count: int, first: int, end: int, **inputs: Any) -> tuple[Tensor, Any]:
        kept = {"logits_to_keep": count} if name == "logits" else {}
        output = model(input_ids=ids[:, first:end], **inputs, **kept)
        return output[name][0, -count:], output.past_key_values

    end = start + fed
    if len(completions) == 1 or not fed:  # one sequence under plain causal attention
        whole, _ = last(1 + fed, done, end, **begun, use_cache=beginning is not None)
        return whole[:1], whole[1:]
    if _checkpoints(model):
        mask = _mask(owner[0], 0, model.dtype)
        whole, _ = last(1 + fed, 0, end, position_ids=positions, attention_mask=mask, use_cache=False)
        return whole[:1], whole[1:]
    first, cache = last(1, done, start, **begun, use_cache=True)
    behind = {"position_ids": positions[:, start:], "attention_mask": _mask(owner[0], start, model.dtype)}
    rest, _ = last(fed, start, end, **behind, past_key_values=cache, use_cache=True)
    return first, rest


def _laid_out(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> list[list[int]]:
    """Ids, positions and owners (-1 the prompt, i completion i) of the prompt and the completions behind it.

    The last token of a completion predicts nothing, so it is not fed.
    """
    ids, positions, owner = list(prompt), list(range(len(prompt))), [-1] * len(prompt)
    for number, completion in enumerate(completions):
        fed = list(completion[:-1])
        ids += fed
        positions += range(len(prompt), len(prompt) + len(fed))
        owner += [number] * len(fed)
    return [ids, positions, owner]


def _mask(owner: Tensor, start: int, dtype: torch.dtype) -> Tensor:
    """(1, 1, L - start, L) additive mask: from `start` on, a token sees what is not after it and belongs to the prompt
    or to its own."""
    import torch

    columns = torch.arange(owner.shape[0], device=owner.device)
    not_after = columns <= columns[start:].unsqueeze(1)
    visible = not_after & ((owner == -1) | (owner[start:].unsqueeze(1) == owner))
    return additive(visible.unsqueeze(0), dtype)


def _checkpoints(model: Any) -> bool:
    """Whether gradient checkpointing is on; it drops every cache."""
    return any(part.training and getattr(part, "gradient_checkpointing", False) for part in model.modules())


def _token_logprobs(logits: Tensor, tokens: Sequence[int], temperature: float) -> Tensor:
    """(N, V) logits -> (N,) log-probability of the token that each predicts."""
    import torch

    targets = torch.tensor(tokens, dtype=torch.long, device=logits.device)
    return -torch.nn.functional.cross_entropy(logits.float() / temperature, targets, reduction="none")


def _joined(first: Tensor, later: Tensor, completions: Sequence[Sequence[int]]) -> list[Tensor]:
    """(G, ...) of the first tokens and (sum of T_i - 1, ...) of the others -> (T_i, ...) of each completion."""
    import torch

    parts = torch.split(later, [len(completion) - 1 for completion in completions])
    return [torch.cat([first[i : i + 1], part]) for i, part in enumerate(parts)]
