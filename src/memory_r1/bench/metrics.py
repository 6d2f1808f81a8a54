"""How well an answer matches the gold answer: pure functions of two strings, in [0, 1].

The published measures (exact match, both F1s, BLEU-1) stand as their authors compute them. They pay for form: asked
"when", any date in the right format shares tokens with the right one. `typed` does not: it first looks at what kind
of thing the gold answer is, and compares dates as dates, numbers as numbers, yes with no. Left out: the judge, which
needs a model, and everything that needs more than one question (bench/score.py).

An empty prediction scores 0 everywhere.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from statistics import fmean
from typing import Protocol

from memory_r1.bench.dates import find_spans, is_date


class _Stemmer(Protocol):
    def stemWord(self, word: str) -> str: ...


@cache
def _porter() -> _Stemmer:
    from snowballstemmer import stemmer

    made: _Stemmer = stemmer("porter")
    return made


# ---- the published measures


def exact_match(prediction: str, gold: str) -> float:
    """1 when both are equal after lower-casing and dropping punctuation, a/an/the and spare spaces.

    Source: SQuAD, arXiv:1606.05250, official evaluation script v1.1.
    """
    normalised = _squad(prediction)
    return float(bool(normalised) and normalised == _squad(gold))


def exact_match_strip(prediction: str, gold: str) -> float:
    """1 when both are equal after stripping and lower-casing.

    Source: the Memory-R1 authors' published evaluation code.
    """
    stripped = prediction.strip().lower()
    return float(bool(stripped) and stripped == gold.strip().lower())


def f1_mem0(prediction: str, gold: str) -> float:
    """2PR / (P + R) over the SETS of lower-case words, with . , ! ? read as spaces; 0 when either has none.

    Source: the evaluation code of mem0 (arXiv:2504.19413), with which Memory-R1's tables were made.
    """
    ours, golds = (set(re.sub(r"[.,!?]", " ", text.lower()).split()) for text in (prediction, gold))
    return _f1(len(ours & golds), len(ours), len(golds))


def f1_locomo(prediction: str, gold: str, category: str | None = None) -> float:
    """LoCoMo's own F1: 2PR / (P + R) over the MULTISETS of Porter stems, without punctuation, a, an, the, and.

    By LoCoMo category: "1" (multi-hop) splits both at commas and averages, over the gold's parts, the best F1 with
    any part of the prediction; "3" (open-domain) keeps the gold before ";"; "5" (adversarial) is 1 when the prediction
    says "not mentioned" or "no information available". Any other category, or None, is the plain F1. The stems are
    those of Porter's paper (Snowball's "porter"); the official code takes NLTK's variant, which differs in few words.

    Source: LoCoMo, arXiv:2402.17753, task_eval/evaluation.py.
    """
    if category == "1":
        parts = prediction.split(",")
        return fmean(max(_stemmed_f1(part, wanted) for part in parts) for wanted in gold.split(","))
    if category == "3":
        return _stemmed_f1(prediction, gold.split(";")[0])
    if category == "5":
        return float(any(phrase in prediction.lower() for phrase in ("no information available", "not mentioned")))
    return _stemmed_f1(prediction, gold)


def bleu1(prediction: str, gold: str) -> float:
    """Clipped unigram precision times the brevity penalty exp(1 - r/c) when the prediction is the shorter one.

    Equal to nltk's `sentence_bleu` with weights (1, 0, 0, 0) and smoothing method 1, on lower-cased Treebank tokens.
    The published code calls `word_tokenize`, which first splits sentences with a model that must be downloaded; here
    the text is one line (`preserve_line=True`), so that a full stop inside it stays on its word.

    Source: BLEU, ACL P02-1040; tokens and weights as in the mem0 evaluation code.
    """
    from nltk.tokenize import NLTKWordTokenizer  # a second to import

    tokens = NLTKWordTokenizer()
    ours, golds = tokens.tokenize(prediction.lower()), tokens.tokenize(gold.lower())
    if not ours:
        return 0.0
    overlap = sum((Counter(ours) & Counter(golds)).values())
    penalty = math.exp(1 - len(golds) / len(ours)) if len(ours) <= len(golds) else 1.0
    return penalty * overlap / len(ours)


def groundedness(answer: str, texts: Iterable[str]) -> float:
    """The share of the answer's different content words that occur in `texts`, compared as Porter stems.

    Low groundedness with a right answer means that it was guessed. 0 when the answer has no content word (empty, or
    only stop words and yes/no) and when there are no texts: nothing then shows where the answer came from.
    """
    words = _content(answer)
    known: set[str] = set().union(*map(_content, texts))
    return len(words & known) / len(words) if words else 0.0


def _squad(text: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", _unpunctuated(text)).split())


def _unpunctuated(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


def _stems(text: str) -> list[str]:
    words = re.sub(r"\b(a|an|the|and)\b", " ", _unpunctuated(text)).split()
    return [_porter().stemWord(word) for word in words]


def _stemmed_f1(prediction: str, gold: str) -> float:
    ours, golds = _stems(prediction), _stems(gold)
    return _f1(sum((Counter(ours) & Counter(golds)).values()), len(ours), len(golds))


def _f1(overlap: int, ours: int, golds: int) -> float:
    """2PR / (P + R) with P = overlap / ours and R = overlap / golds, which is 2 overlap / (ours + golds)."""
    return 2 * overlap / (ours + golds) if overlap else 0.0


def _content(text: str) -> set[str]:
    words = re.findall(r"\w+", re.sub(r"['’]\w*", "", text.lower()))
    return {_porter().stemWord(word) for word in words if word not in _STOP_WORDS}


_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about after all also am an and any are as at be because been before being both but by can could did do does
    doing down during each few for from further had has have having he her here hers herself him himself his how i if
    in into is it its itself just me more most my myself no nor not of off on once only or other our ours out over own
    same she should so some such than that the their theirs them themselves then there these they this those through
    to too under until up very was we were what when where which while who whom why will with would yes you your
    yours""",
    )
)


# ---- typed scoring


class AnswerType(StrEnum):
    """What kind of thing a gold answer is, and so how an answer is compared with it."""

    DATE = "date"
    NUMBER = "number"
    YES_NO = "yes_no"
    LIST = "list"
    TEXT = "text"


def answer_type(gold: str) -> AnswerType:
    """The kind of a gold answer, from its form alone; what only contains a date or number is text.

    >>> [answer_type(gold).value for gold in ("7 May 2023", "4 years", "Likely no; it went badly", "Max and Luna")]
    ['date', 'number', 'yes_no', 'list']
    """
    if is_date(gold):
        return AnswerType.DATE
    if _whole_quantity(gold):
        return AnswerType.NUMBER
    if _STATED.match(gold) and _polarity(gold):
        return AnswerType.YES_NO
    return AnswerType.LIST if _is_list(gold) else AnswerType.TEXT


def typed(prediction: str, gold: str) -> float:
    """Score by the kind of the gold answer, so that the right form alone earns nothing.

    date    1 when the prediction names dates and each lies within one of the gold's (its days, month, year or
            phrase: "14 July 2023" for "the Friday before 15 July 2023"), and each of the gold's is named; else 0
    number  1 when the prediction gives the gold's number, with its unit, and no other number; else 0. A missing unit
            is forgiven, except for time: "4" is not "4 years"
    yes_no  1 when both begin with the same of yes and no, hedged or not; else 0
    list    F1 over the sets of items, equal when their stems are
    text    `f1_locomo`

    Why: rewarded with token F1, a small model learnt to print some date of the right form, whatever was asked.
    """
    match answer_type(gold):
        case AnswerType.DATE:
            return float(_same_dates(prediction, gold))
        case AnswerType.NUMBER:
            return float(_same_number(prediction, gold))
        case AnswerType.YES_NO:
            return float(_polarity(prediction) == _polarity(gold))
        case AnswerType.LIST:
            return _list_f1(prediction, gold)
    return max(f1_locomo(prediction, gold), exact_match_strip(prediction, gold))  # gold may be all stop words


def _same_dates(prediction: str, gold: str) -> bool:
    ours, golds = find_spans(prediction), find_spans(gold)
    precise = all(any(span.within(wanted) for wanted in golds) for span in ours)
    complete = all(any(span.within(wanted) for span in ours) for wanted in golds)
    return precise and complete


# ---- numbers, counts and durations

_TIME_UNITS = ("second", "minute", "hour", "day", "week", "month", "year", "decade")
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_NUMBER_WORDS = {
    **{word: str(n) for n, word in enumerate(_ONES)},
    **{word: str(n) for word, n in _TENS.items()},
    **{f"{tens}-{_ONES[n]}": str(value + n) for tens, value in _TENS.items() for n in range(1, 10)},
    "once": "1", "twice": "2", "thrice": "3", "couple of": "2", "a": "1", "an": "1",
    "few": "some", "several": "some", "multiple": "some", "many": "some",
}  # fmt: skip
_TIME = rf"(?:{'|'.join(_TIME_UNITS)})s?\b"
_WORD_ALTERNATIVES = "|".join(sorted(_NUMBER_WORDS.keys() - {"a", "an"}, key=len, reverse=True))
_NUMBER = rf"(?<![\w.])(?:\d+(?:,\d{{3}})*(?:\.\d+)?|{_WORD_ALTERNATIVES}|an?(?= {_TIME}))(?!\w)"
_QUANTITY = re.compile(
    rf"(?:a )?(?P<first>{_NUMBER})(?:\s*(?:-|–|to|or)\s*(?P<second>{_NUMBER}))?"
    rf"(?P<tail>(?: (?:an?|per|each|every) {_TIME}| (?!{_NUMBER})[^\W\d_]+)*)"
)
_LEAD = re.compile(
    r"(?:(?:about|after|age|aged|almost|approximately|around|at|at least|every|for|in|just|nearly|only|roughly"
    r"|when \w+ (?:was|were|turned)) )*"
)
_BESIDE_UNIT = {"a", "ago", "an", "each", "every", "in", "long", "of", "per", "the", "total"}


@dataclass(frozen=True)
class _Quantity:
    """One number or a range of two, and the stems of the words behind it: ("4",) ("year",)."""

    values: tuple[str, ...]
    unit: tuple[str, ...]

    def equals(self, gold: _Quantity) -> bool:
        """The same numbers, in the gold's unit; a unit of time can be neither left out nor added."""
        if self.values != gold.values:
            return False
        counted_in = {_porter().stemWord(unit) for unit in _TIME_UNITS}
        if not gold.unit:
            return not counted_in.intersection(self.unit[:1])
        unit_missing = not self.unit and not counted_in.intersection(gold.unit)
        return unit_missing or self.unit[: len(gold.unit)] == gold.unit


def _same_number(prediction: str, gold: str) -> bool:
    wanted, ours = _whole_quantity(gold), _quantities(prediction)
    return wanted is not None and bool(ours) and all(quantity.equals(wanted) for quantity in ours)


def _whole_quantity(text: str) -> _Quantity | None:
    """The quantity that is the whole text, with a unit of at most two words; None for anything else."""
    text = _plain_quantities(text)
    lead = _LEAD.match(text)
    match = _QUANTITY.fullmatch(text, lead.end() if lead else 0)
    if match is None or re.search(r"\b(?:and|or)\b", match["tail"]):
        return None
    quantity = _read_quantity(match)
    return quantity if len(quantity.unit) <= 2 else None


def _quantities(text: str) -> list[_Quantity]:
    return [_read_quantity(match) for match in _QUANTITY.finditer(_plain_quantities(text))]


def _plain_quantities(text: str) -> str:
    """Lower case, "$10" as "10 dollars", "8 years old" as "8", single spaces, no full stop at the end."""
    text = re.sub(r"\$(\d+(?:,\d{3})*(?:\.\d+)?)", r"\1 dollars", text.lower())
    text = re.sub(r"[ -]years?[ -]old\b", "", text)
    return " ".join(text.replace("once every", "every").split()).rstrip(".!")


def _read_quantity(match: re.Match[str]) -> _Quantity:
    first, second = match["first"], match["second"]
    values = tuple(_value(number) for number in (first, second) if number)
    counted = ["time"] if {first, second} & {"once", "twice", "thrice"} else []
    words = [word for word in match["tail"].split() if word not in _BESIDE_UNIT]
    return _Quantity(values, tuple(_porter().stemWord(word) for word in (counted + words)))


def _value(number: str) -> str:
    return _NUMBER_WORDS.get(number) or f"{float(number.replace(',', '')):.12g}"


# ---- yes and no

_HEDGE = r"(?:(?:most |very )?(?:likely|maybe|perhaps|possibly|presumably|probably),? )"
_SAID = rf"(?:{_HEDGE}?(?:yes|no(?! (?:fewer|idea|information|less|longer|more|one)\b))|{_HEDGE}not)\b"
_STATED = re.compile(rf"(?i)\s*{_SAID}(?=\s*(?:[,;:.!]|because\b|since\b|$))")
_SAID_AT_HEAD = re.compile(rf"(?i)\W*(?:{_SAID}\W*)+")


def _polarity(text: str) -> str | None:
    """ "yes" or "no" when the text begins with it and no later clause says the other; else None."""
    head = _SAID_AT_HEAD.match(text)
    if head is None:
        return None
    clauses = re.split(r"(?i)[,;:.!?/]|\bor\b|\band\b|\bbut\b", text[head.end() :])
    said = " ".join([head[0], *(clause for clause in clauses if _SAID_AT_HEAD.fullmatch(clause))])
    votes = {"yes" if word == "yes" else "no" for word in re.findall(r"\b(?:yes|no|not)\b", said.lower())}
    return votes.pop() if len(votes) == 1 else None


# ---- lists

_QUOTED = re.compile(r"\"[^\"]+\"|“[^”]+”|(?<!\w)'[^']+'(?!\w)|(?<!\w)‘[^’]+’(?!\w)")
_COMMAS, _COMMAS_AND = r"[,;\n]", r"[,;\n]|\band\b|&"
_POSSESSIVES = {"her", "his", "its", "my", "our", "their", "your"}
_IN_ITEM = {"a", "an", "of", "the", *_POSSESSIVES}


def _is_list(text: str) -> bool:
    """Two or more short items: up to three content words each, two where only "and" parts them.

    An item holds no function word but articles, "of" and possessives, or stands in quotes: what says more than that
    is said in many ways, which only a text score can grade.
    """
    longest = 3 if re.search(_COMMAS, text) else 2
    parts = re.split(_COMMAS_AND, _closed_quotes(text.strip().rstrip(".")))
    items = [part.strip() for part in parts if part.strip()]
    return len(items) >= 2 and all(_is_item(item, longest) for item in items)


def _is_item(part: str, longest: int) -> bool:
    words = re.findall(r"[\w'’-]+", part.lower())
    content = [word for word in words if word not in _STOP_WORDS]
    plain = _IN_ITEM.issuperset(set(words) - set(content)) and not re.search(r";|\w{3,}[.!?]\s| [-–] ", part)
    return bool(_QUOTED.fullmatch(part)) or (plain and 1 <= len(content) <= longest)


def _list_f1(prediction: str, gold: str) -> float:
    """The best F1 over reading "and" as a separator or as part of an item, on either side."""
    readings = [
        (_items(prediction, ours), _items(gold, golds))
        for ours in (_COMMAS, _COMMAS_AND)
        for golds in (_COMMAS, _COMMAS_AND)
    ]
    return max(_f1(len(ours & golds), len(ours), len(golds)) for ours, golds in readings)


def _items(text: str, separator: str) -> set[frozenset[str]]:
    """The items as sets of stems; what stands in quotes is one item."""
    parts = re.split(separator, _closed_quotes(text))
    return {item for part in parts if (item := frozenset(_stems(part)) - _POSSESSIVES)}


def _closed_quotes(text: str) -> str:
    """The text without the separators inside quotes."""
    return _QUOTED.sub(lambda quoted: re.sub(_COMMAS_AND, " ", quoted[0]), text)
