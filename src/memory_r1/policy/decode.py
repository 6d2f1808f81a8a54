"""Sample n completions of every prompt with one prefill per prompt, and one for what all prompts begin with.

The n completions of a prompt share its cached keys and values, which are never copied: at each step the next tokens
of all of them go through the model as ONE short sequence, under a mask by which each token sees the prompt and the
earlier tokens of its own completion only. A completion that has ended leaves the sequence. Cost of a step: the weights
once, plus attention over prompt + n * step columns. Models with windowed or recurrent layers, which such a mask does
not reach, get a row per completion instead.

Left out: nucleus and top-k sampling (their log-probabilities are not the policy's), beams, stop strings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PADDING, _PROMPT = -1, -2  # owners of cache columns; a column of a completion is owned by its number, from 0


@dataclass
class Sampled:
    """The tokens of one completion and their log-probabilities; `ended` when the last token is an end token."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


def sample_groups(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    max_tokens: int,
    temperature: float,
    end_ids: frozenset[int],
    generator: torch.Generator | None = None,
) -> list[list[Sampled]]:
    """Sample n completions of each prompt.

    Args:
        model: a causal language model of transformers, in eval mode.
        prompts: P token id lists, none empty; ragged lengths are padded on the left.
        n: completions per prompt.
        max_tokens: longest completion, the end token included.
        temperature: 0 takes the most probable token; log-probabilities are then those at temperature 1.
        end_ids: tokens that end a completion; the one that did is kept as its last token.
        generator: source of randomness, on the model's device.

    Returns:
        P lists of n completions.
    """
    import torch

    if n > 1 and not attends_to_all(model):
        repeated = [prompt for prompt in prompts for _ in range(n)]
        alone = sample_groups(
            model, repeated, n=1, max_tokens=max_tokens, temperature=temperature, end_ids=end_ids, generator=generator
        )
        return [[group[0] for group in alone[start : start + n]] for start in range(0, len(alone), n)]
    with torch.no_grad(), _casts_kept(model):
        state, logits = _prefill(model, prompts, n)
        groups = [[Sampled() for _ in range(n)] for _ in prompts]
        for step in range(max_tokens):
            tokens, logprobs = _draw(logits, temperature, generator)
            live = _record(groups, state.rows.tolist(), tokens.tolist(), logprobs.tolist(), end_ids)
            width = max(len(columns) for columns in live)
            if width == 0 or step + 1 == max_tokens:
                break
            logits = state.step(model, tokens, live, width, step)
        return groups


def attends_to_all(model: Any) -> bool:
    """Whether every layer attends to all that a mask shows it: none has a sliding window or a recurrent state."""
    from transformers import DynamicCache, DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


@contextmanager
def _casts_kept(model: Any) -> Iterator[None]:
    """Under autocast, cast a weight once and not at every step, where casting costs more than multiplying.

    Autocast keeps the casts of weights that require a gradient, outside inference mode: so all require one meanwhile.
    """
    import torch

    casts = torch.is_autocast_enabled(model.device.type)
    frozen = [weight for weight in model.parameters() if casts and not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        torch.clear_autocast_cache()  # they carry no gradient, and some versions of torch reuse them where one is due


@dataclass
class _State:
    """The cache of P prompts with the completions still being written.

    owner: (P, C) int64, who owns each cache column; rows: (P, W) int64, which completion each query column writes, or
    _PADDING; lengths: (P,) int64, unpadded prompt lengths; shared: whether completions share columns under a 4-D mask.
    """

    cache: Any
    owner: Tensor
    rows: Tensor
    lengths: Tensor
    shared: bool

    def step(self, model: Any, tokens: Tensor, live: list[list[int]], width: int, step: int) -> Tensor:
        """Feed the last token of every live completion; returns the next logits (P, width, V)."""
        import torch

        columns = torch.tensor([row + [0] * (width - len(row)) for row in live], device=tokens.device)
        padding = torch.tensor([[i >= len(row) for i in range(width)] for row in live], device=tokens.device)
        self.rows = self.rows.gather(1, columns).masked_fill(padding, _PADDING)
        self.owner = torch.cat([self.owner, self.rows], dim=1)
        visible = self._visible()
        output = model(
            input_ids=tokens.gather(1, columns),
            attention_mask=additive(visible, model.dtype) if self.shared else visible[:, 0].long(),
            position_ids=(self.lengths + step).unsqueeze(1).expand(-1, width),
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = output.logits
        return logits

    def _visible(self) -> Tensor:
        owner, rows = self.owner.unsqueeze(1), self.rows.unsqueeze(2)
        return (owner == _PROMPT) | ((owner == rows) & (rows != _PADDING))  # (P, W, C)


def _prefill(model: Any, prompts: Sequence[Sequence[int]], n: int) -> tuple[_State, Tensor]:
    """Compute the prompts: what they all begin with once, then the rest of each, padded between the two."""
    import torch

    device, full = model.device, attends_to_all(model)
    begun = common_length(prompts) if full else 0
    cache = _begin(model, prompts[0][:begun], len(prompts))
    longest = max(len(prompt) for prompt in prompts) - begun
    rests = [list(prompt[begun:]) for prompt in prompts]
    ids = torch.tensor([[0] * (longest - len(rest)) + rest for rest in rests], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    columns = torch.arange(-begun, longest, device=device)
    mask = (columns < 0) | (columns >= (longest - lengths + begun).unsqueeze(1))
    output = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(1) - 1).clamp(min=0)[:, begun:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    owner = torch.where(mask, _PROMPT, _PADDING)
    rows = torch.arange(n, device=device).expand(len(prompts), n)
    return _State(cache, owner, rows, lengths, n > 1 or full), output.logits.expand(-1, n, -1)


def common_length(prompts: Sequence[Sequence[int]], worth: int = 64) -> int:
    """How many tokens all prompts begin with, one of each left over; 0 where it is not worth a pass of its own."""
    same = 0
    while same < min(len(prompt) for prompt in prompts) - 1 and len({prompt[same] for prompt in prompts}) == 1:
        same += 1
    return same if len(prompts) > 1 and same >= worth else 0


def _begin(model: Any, tokens: Sequence[int], rows: int) -> Any:
    """A cache in which each of `rows` prompts has begun with these tokens, computed once."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    if tokens:
        ids = torch.tensor([tokens], device=model.device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(rows)
    return cache


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(P, W, C) bool -> (P, 1, W, C) of 0 where visible and the lowest number elsewhere."""
    import torch

    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min).unsqueeze(1)


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draw one token per position from (P, W, V) logits; returns ids and log-probabilities, both (P, W)."""
    import torch

    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        # inverse of the cumulative distribution: one random number a row, where multinomial draws one per token id
        cumulative = logprobs.double().exp().cumsum(-1)  # (P, W, V)
        shape = (*logprobs.shape[:2], 1)
        uniform = torch.rand(shape, generator=generator, device=logprobs.device, dtype=torch.float64)
        tokens = torch.searchsorted(cumulative, uniform * cumulative[..., -1:], right=True).squeeze(-1)
        tokens = tokens.clamp(max=logprobs.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _record(
    groups: list[list[Sampled]],
    rows: list[list[int]],
    tokens: list[list[int]],
    logprobs: list[list[float]],
    end_ids: frozenset[int],
) -> list[list[int]]:
    """Append the drawn tokens; returns, per prompt, the query columns whose completion goes on."""
    live: list[list[int]] = []
    for group, group_rows, group_tokens, group_logprobs in zip(groups, rows, tokens, logprobs, strict=True):
        going_on = []
        for column, row in enumerate(group_rows):
            if row == _PADDING:
                continue
            completion = group[row]
            completion.tokens.append(group_tokens[column])
            completion.logprobs.append(group_logprobs[column])
            completion.ended = group_tokens[column] in end_ids
            if not completion.ended:
                going_on.append(column)
        live.append(going_on)
    return live
