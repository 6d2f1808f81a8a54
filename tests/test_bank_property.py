"""A few random calls on a bank and on a model of it that fits on a page: both must say the same, on disk and in forks.

What fails here shrinks to the few calls that matter; test_bank_long.py goes on for longer.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from bank_model import Call, Model, check, check_file, step
from memory_r1.bank import Bank, HashingEmbedder, Operation

TEXTS = st.sampled_from(["tea", "coffee", "a dog", "a cat", "Lisbon"])
SPEAKERS = st.sampled_from(["Ann", "", None]).map(lambda speaker: speaker or None)
TURN_IDS = st.sampled_from([(), (), ("t1",)])
NUMBERS = st.integers(0, 7).map(str)
VERSIONS = st.sampled_from([None, None, 1, 2])
# A drawn call names entries and log lines by a number, which `aimed` turns into one that the bank has, mostly.
OPERATIONS = st.one_of(
    st.builds(lambda text, speaker: Operation.add(text, speaker=speaker), TEXTS, SPEAKERS),
    st.builds(
        lambda number, text, version, turn_ids: Operation.update(number, text, version=version, turn_ids=turn_ids),
        NUMBERS, TEXTS, VERSIONS, TURN_IDS,
    ),
    st.builds(lambda number, version: Operation.delete(number, version=version), NUMBERS, VERSIONS),
    st.just(Operation.noop()),
)  # fmt: skip
BATCHES = st.lists(OPERATIONS, min_size=1, max_size=3).map(lambda batch: Call("apply", {"operations": batch}))
RESTORES = st.builds(lambda number, v: Call("restore", {"entry_id": number, "version": v}), NUMBERS, VERSIONS)
UNDOS = st.one_of(st.none(), st.integers(0, 15)).map(lambda number: Call("undo", {"operation": number}))
CALLS = st.lists(st.one_of(BATCHES, BATCHES, RESTORES, UNDOS), max_size=6)


def aimed(call: Call, model: Model) -> Call:
    """Name entries by their number among those that ever were; one number too many is an id that never was."""
    ids = [*model.said, "e999"]
    arguments = dict(call.arguments)
    if call.method == "restore":
        arguments["entry_id"] = ids[int(arguments["entry_id"]) % len(ids)]
    elif call.method == "apply":
        arguments["operations"] = [
            replace(operation, entry_id=ids[int(operation.entry_id) % len(ids)]) if operation.entry_id else operation
            for operation in arguments["operations"]
        ]
    return Call(call.method, arguments)


def steps(bank: Bank, model: Model, calls: list[Call]) -> Model:
    for call in calls:
        model = step(bank, model, aimed(call, model))
    return model


RESTORED_WORD_FOR_WORD = [
    Call("apply", {"operations": [Operation.add("tea"), Operation.noop()]}),
    Call("apply", {"operations": [Operation.update("0", "coffee"), Operation.update("0", "tea", turn_ids=["t1"])]}),
    Call("restore", {"entry_id": "0", "version": 1}),
]


@settings(max_examples=100, deadline=None)
@example(before=RESTORED_WORD_FOR_WORD, after=[], in_fork=[], in_child=[])
@given(before=CALLS, after=CALLS, in_fork=CALLS, in_child=CALLS)
def test_a_bank_its_file_and_its_forks_do_what_the_model_does(
    before: list[Call], after: list[Call], in_fork: list[Call], in_child: list[Call]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        with Bank.open(path, embedder=HashingEmbedder(8)) as bank:
            at_fork = steps(bank, Model(), before)
            check(bank, at_fork)
            fork = bank.fork()
            model = steps(bank, at_fork, after)
            fork_model = steps(fork, at_fork, in_fork)
            child = fork.fork()
            child_model = steps(child, fork_model, in_child)
            fork_model = steps(fork, fork_model, after)
            check(bank, model)
            check(fork, fork_model)
            check(child, child_model)
        with Bank.open(path, embedder=HashingEmbedder(8)) as reopened:
            check_file(reopened, model)
