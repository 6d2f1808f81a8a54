"""A line of plain words for every metric that is logged: the report shows it, docs/training.md lists it (tested)."""

from __future__ import annotations

LINES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("reward",), "mean reward of this iteration's sampled replies. Without format or bank terms it lies in 0 to 1"),
    (("reward/exact_match",), "share of answers exactly right"),
    (
        ("reward/well_formed",),
        "share of replies that kept the format and, for the memory manager, were not refused by the bank. The report "
        "draws what is left to 1: the parse-failure rate",
    ),
    (("reward/distilled",), "answer agent: entries kept per reply"),
    (("reward/retention",), "memory manager: share of the questions' evidence that the bank still holds"),
    (("reward/entries",), "memory manager: entries in the bank afterwards"),
    (
        ("reward/add", "reward/update", "reward/delete", "reward/noop"),
        "memory manager: operations of each kind per reply",
    ),
    (("val/...",), "the same for greedy replies to the val questions: the number to choose by"),
    (
        ("loss",),
        "SFT: mean negative log-probability of the replies. GRPO and PPO: the clipped loss plus KL; its value near 0 "
        "is normal, read reward",
    ),
    (("kl",), "mean k3 estimate per token, against the policy after the warm start"),
    (
        ("entropy_estimate",),
        "mean negative log-probability of sampled tokens: falls as the policy grows sure; near 0 nothing new is tried",
    ),
    (("clip_fraction",), "share of tokens whose ratio left the clip range; 0 with one update per iteration"),
    (
        ("frac_no_signal",),
        "share of prompts whose replies all earn the same and teach nothing; for prompts sampled once, 1 if all "
        "replies of the iteration earn the same, else 0. Near 1: a longer warm start, a graded reward, or more samples",
    ),
    (("completion_tokens",), "mean length of a reply"),
    (("truncated",), "share of replies cut at the token limit"),
    (("value_loss",), "PPO: the critic's squared error"),
    (
        ("explained_variance",),
        "PPO: share of the returns' variance that the critic foresees; 0 or less: it foresees nothing",
    ),
    (("critic_grad_norm", "critic_lr"), "PPO: of the critic's step"),
    (("grad_norm",), "length of the gradient before clipping"),
    (("lr",), "learning rate of this iteration"),
    (
        ("sampler_gap", "sampler_gap_max"),
        "mean and largest absolute difference between the sampler's log-probabilities and the learner's: should stay "
        "small (mean in bfloat16: about 0.05)",
    ),
    (("importance_weight",), "mean weight that corrects for another engine's sampling, where one is set: near 1"),
    (("seconds",), "wall time of the iteration, without checks on val"),
)
GLOSSARY: dict[str, str] = {name: text for names, text in LINES for name in names}


def meaning(metric: str) -> str:
    """The line of a metric, that of val/... for all of val's; empty for one that has none."""
    return GLOSSARY["val/..."] if metric.startswith("val/") else GLOSSARY.get(metric, "")
