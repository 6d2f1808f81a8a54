"""What to know about one's own data before training on it. Left out: what is refused outright (train.py)."""

from __future__ import annotations

from collections.abc import Sequence

from memory_r1.dialogue import Question
from memory_r1.rl.tasks.answer_episodes import AnswerEpisode
from memory_r1.rl.types import Episode

ENOUGH = 150  # questions: the paper's 152 are the fewest that are known to teach


def remarks(questions: Sequence[Question], episodes: Sequence[Episode]) -> list[str]:
    """Sentences on the questions to train on, and on what became of them; none where all is well.

    Args:
        questions: those to train on.
        episodes: made from them; the answer agent's say whether their evidence was retrieved.
    """
    said, asked = [], len(questions)
    if asked < ENOUGH:
        said.append(
            f"{asked} questions to train on: about {ENOUGH} are known to be enough; expect noise, check on others"
        )
    bare = sum(not question.evidence for question in questions)
    if bare:
        said.append(
            f"{bare} of {asked} questions name no evidence: no entry is shown to be right, no turn linked to them"
        )
    answering = [episode for episode in episodes if isinstance(episode, AnswerEpisode)]
    reached = {episode.id for episode in answering}  # over each bank, where there are several
    lost = len(reached - {episode.id for episode in answering if episode.answerable})
    if lost:
        said.append(
            f"{lost} of {asked} questions cannot be answered from what is retrieved for them, their evidence is not "
            "there: they are not imitated, and earn by chance; retrieve more (--answer.k)"
        )
    if reached and len(reached) < asked:
        said.append(f"{asked - len(reached)} of {asked} questions retrieve nothing and are left out")
    return said
