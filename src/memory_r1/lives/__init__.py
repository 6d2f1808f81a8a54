"""Invented lives: dialogues of two people over months, with questions, gold answers and the operations a good manager
would choose, free to train on and to pass on.

`invent` writes them, equal for equal seeds; `python -m memory_r1.lives --help` writes a file. What is said comes from
the story files in stories/ (stories.py tells their format): read one first. The parts "train" and "held-out" share no
phrasing and no question form, so that a check on the second measures more than known words. Left out: real data, and
any model.
"""

from memory_r1.lives.invent import Invented, invent

__all__ = ["Invented", "invent"]
