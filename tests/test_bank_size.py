"""What makes a large bank fast, on its own: lines in columns, postings in blocks, and the first pass by signs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.bank import Bank, HashingEmbedder, Operation
from memory_r1.bank.chains import Chains
from memory_r1.bank.column import Floats
from memory_r1.bank.lines import Lines
from memory_r1.bank.log import Log
from memory_r1.bank.operation import LoggedOperation
from memory_r1.bank.postings import Postings
from memory_r1.bank.signs import Signs, nearest
from memory_r1.bank.vectors import Vectors

DOCUMENTS = st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), max_size=12)


@given(st.lists(DOCUMENTS, max_size=20))
def test_postings_hold_what_was_added_however_it_came(batches: list[list[list[str]]]) -> None:
    postings, documents = Postings(), [document for batch in batches for document in batch]
    for batch in batches:
        postings.extend(batch)
    assert postings.lengths.tolist() == [len(document) for document in documents]
    for stop in {0, len(documents) // 2, len(documents)}:
        for term in "abcdefg":
            expected = [(row, Counter(document)[term]) for row, document in enumerate(documents) if term in document]
            rows, counts = postings.of(term, stop)
            assert list(zip(rows.tolist(), counts.tolist(), strict=True)) == [e for e in expected if e[0] < stop]


def test_postings_stay_in_few_blocks_however_many_documents_come_one_by_one() -> None:
    postings = Postings()
    for number in range(3000):
        postings.extend([[f"term{number % 7}", "all"]])
    assert len(postings._blocks) <= 8
    assert postings.of("all", 3000)[0].tolist() == list(range(3000))


def test_lines_give_back_the_operations_they_were_made_of(tmp_path: Path) -> None:
    with Bank.open(tmp_path / "bank", embedder=HashingEmbedder(8)) as bank:
        said_at = datetime(2024, 5, 1, 12, 30, 1, 5)
        bank.apply([Operation.add("tea", speaker="Ann", said_at=said_at, turn_ids=["t1", 't"2']), Operation.noop()])
        bank.apply([Operation.update("e1", "coffee"), Operation.add("cake")])
        bank.apply([Operation.delete("e1", turn_ids=["t3"])])
        bank.undo()
        operations = bank.operations()
    lines = Lines.of(operations)
    assert [lines.operation(place) for place in range(len(lines))] == operations
    assert bank_log(operations).batch(operations[2].batch) == operations[2:4]
    assert [tuple(outline) for outline in bank_log(operations).outline()] == [
        (operation.seq, operation.kind, operation.batch, operation.undoes) for operation in operations
    ]
    assert [operation.undoes for operation in operations][-1] == operations[-2].batch
    with Bank.open(tmp_path / "bank", embedder=HashingEmbedder(8)) as bank:
        assert bank.operations() == operations


def bank_log(operations: list[LoggedOperation]) -> Log:
    log = Log(source=lambda after: ())
    log.append(Lines.of(operations))
    return log


def test_the_past_is_cut_at_a_batch_and_no_line_before_it_is_lost() -> None:
    times = iter(datetime.fromisoformat(f"2024-01-01T00:00:0{n}+00:00") for n in range(4))
    bank = Bank.open(":memory:", embedder=HashingEmbedder(8), clock=lambda: next(times))
    bank.apply([Operation.add("tea"), Operation.add("cake")])
    fork = bank.fork()
    bank.apply([Operation.update("e1", "coffee"), Operation.delete("e2")])
    first, second = bank.operations()[0].at, bank.operations()[-1].at
    instant = timedelta(microseconds=1)
    assert [entry.text for entry in bank.as_of(first)] == ["tea", "cake"]
    assert bank.as_of(first - instant) == []
    assert [entry.text for entry in bank.as_of(second - instant)] == ["tea", "cake"]
    assert [entry.text for entry in bank.as_of(second)] == ["coffee"]
    assert [entry.text for entry in fork.as_of(second)] == ["tea", "cake"]


def test_a_chain_gives_a_keys_rows_newest_first_up_to_where_one_looks() -> None:
    chains = Chains()
    for row, key in enumerate(["a", "b", "a", "a"]):
        chains.add(key, row)
    assert list(chains.newest_first("a", 4)) == [3, 2, 0]
    assert list(chains.newest_first("a", 3)) == [2, 0]
    assert list(chains.newest_first("b", 1)) == []
    assert list(chains.newest_first("c", 4)) == []


# The first pass


def vectors_of(blocks: list[Floats]) -> Vectors:
    def source(after: int) -> Iterator[tuple[int, Floats]]:
        yield from ((number, block) for number, block in enumerate(blocks, start=1) if number > after)

    return Vectors(source)


@pytest.mark.parametrize("dimension", [8, 64, 100, 384])
def test_distances_count_the_dimensions_whose_signs_differ(dimension: int) -> None:
    random = np.random.default_rng(0)
    blocks = [random.normal(size=(rows, dimension)).astype(np.float32) for rows in (30, 1, 5)]
    signs, query = Signs(vectors_of(blocks)), random.normal(size=dimension).astype(np.float32)
    expected = ((np.concatenate(blocks) > 0) != (query > 0)).sum(axis=1)
    for count in (7, 30, 36):
        assert signs.distances(query, count).tolist() == expected[:count].tolist()


def test_the_nearest_are_taken_among_the_given_rows_with_all_that_tie() -> None:
    distances = np.array([3, 0, 1, 1, 2], dtype=np.uint16)
    assert nearest(distances, np.arange(5), 2).tolist() == [1, 2, 3]
    assert nearest(distances, np.array([0, 2, 4]), 1).tolist() == [2]
    assert nearest(distances, np.array([0, 2, 4]), 9).tolist() == [0, 2, 4]
