"""Text to search terms: Unicode words, folded, without stop words, stemmed by Snowball's English stemmer.

Words of other alphabets pass through the stemmer unchanged; Chinese, Japanese and Korean characters, which no space
divides, are terms of their own. Left out: stemming in other languages.
"""

from __future__ import annotations

import re
import unicodedata

import snowballstemmer

_STOP_WORDS = """
    a about after again all am an and any are as at be been before being but by can could did do does doing don for
    from had has have having he her here hers him his how i if in into is it its just me more most my no nor not of off
    on once only or other our out over own s same she should so some such t than that the their them then there these
    they this those through to too under until up very was we were what when where which while who whom why will with
    would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

_CJK = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e00-\u0eff"  # \w lacks combining marks
_TERM = re.compile(rf"[{_CJK}]|[^\W_{_CJK}](?:[^\W_{_CJK}]|[{_MARKS}])*")

LONGEST_STEMMED = 64  # what is longer is no English word, and stemming a megabyte takes a third of a second

# What _TERM finds in ASCII, which most text is, at a third of the time: letters lowered, all that is no term a space.
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() else ord(" ") for code in range(128)).ljust(256)


class Words:
    """Turns text into terms. Remembers every stem it worked out; not thread-safe."""

    def __init__(self) -> None:
        self._stems = _Stems()

    def terms(self, text: str) -> list[str]:
        """The terms of a text in order, repetitions kept."""
        if text.isascii():
            words = text.encode().translate(_ASCII).decode().split()
        else:
            words = _TERM.findall(unicodedata.normalize("NFKC", text).casefold())
        return list(filter(None, map(self._stems.__getitem__, words)))


class _Stems(dict[str, str]):
    """The stem of every word, "" for a stop word; each is worked out once."""

    def __init__(self) -> None:
        self._stemmer = snowballstemmer.stemmer("english")

    def __missing__(self, word: str) -> str:
        if word.isdigit() or len(word) > LONGEST_STEMMED:
            return word  # has no stem, and a bank may hold any number of them
        stem = self[word] = "" if word in STOP_WORDS else self._stemmer.stemWord(word)
        return stem
