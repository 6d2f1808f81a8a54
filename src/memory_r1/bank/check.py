"""What may come into a bank: operations, turns, texts and vectors, looked at before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from memory_r1.bank.column import Floats
from memory_r1.bank.embed import Embedder
from memory_r1.bank.operation import Operation, OperationKind, StoredTurn, storable
from memory_r1.errors import BankError, InputError, OperationError


def check_operation(operation: Operation) -> None:
    """Refuse an operation that no bank could apply; raises OperationError."""
    if operation.kind in (OperationKind.ADD, OperationKind.UPDATE) and operation.text is None:
        raise OperationError(
            f"{operation.kind} has no text, expected what is to be remembered: use Operation.add or update"
        )
    if operation.kind in (OperationKind.UPDATE, OperationKind.DELETE) and not operation.entry_id:
        raise OperationError(f"{operation.kind} names no entry, expected an id such as 'e17'")
    for text in (operation.text, operation.speaker, *operation.turn_ids):
        if text is not None:
            storable(text)
    if operation.said_at is not None and operation.said_at.tzinfo is not None:
        raise OperationError(
            f"said_at is {operation.said_at.isoformat()}, expected a wall clock without a zone: .replace(tzinfo=None)"
        )


def check_turn(turn: StoredTurn) -> None:
    """Refuse a turn that no bank could store; raises InputError."""
    for name in ("id", "speaker", "text"):
        check_text(f"the {name} of turn {turn.id!r}", getattr(turn, name))
    if turn.at is not None and turn.at.tzinfo is not None:
        raise InputError(f"turn {turn.id!r} is at {turn.at.isoformat()}, expected a wall clock without a zone")


def check_text(name: str, text: str) -> None:
    """Refuse an empty text and one that is not valid Unicode; raises InputError that says what it is the `name` of."""
    if not text.strip():
        raise InputError(f"{name} is {text!r}, expected a text that is not empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name} has a lone surrogate at character {error.start}, expected valid Unicode") from error


def embedded(embedder: Embedder, texts: Sequence[str]) -> Floats:
    """The vectors of texts, (N, D); raises BankError when the embedder breaks its promise of shape and length."""
    vectors = embedder.embed(texts)
    if vectors.shape != (len(texts), embedder.dimension):
        raise BankError(
            f"embedder {embedder.name!r} gave vectors of shape {vectors.shape}, "
            f"expected {(len(texts), embedder.dimension)}: mend the embedder"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if not np.all(np.abs(lengths - 1) < UNIT_SLACK):  # NaN too
        worst = int(np.argmax(~(np.abs(lengths - 1) < UNIT_SLACK)))
        raise BankError(
            f"embedder {embedder.name!r} gave a vector of length {lengths[worst]:.4g} for {texts[worst]!r:.60}, "
            "expected 1: mend the embedder"
        )
    return vectors


UNIT_SLACK = 1e-3
"""How far from 1 the length of a vector may be."""

EmbedderId = tuple[str, int]
"""Name and dimension of an embedder."""


def id_of(embedder: Embedder) -> EmbedderId:
    """What a bank keeps of an embedder; one that learns its dimension at the first use is used for that."""
    return embedder.name, embedder.dimension


class _Maker(Protocol):
    def embedder(self) -> EmbedderId | None: ...

    def set_embedder(self, name: str, dimension: int) -> None: ...


def check_embedder(stored: EmbedderId | None, ours: EmbedderId) -> None:
    """Refuse an embedder that did not make the vectors that are stored; raises BankError."""
    if stored not in (None, ours):
        raise BankError(
            f"the bank's vectors were made by embedder (name, dimension) {stored}, got {ours}: open the bank with the "
            "embedder it was made with, search it with mode 'bm25', or have memory-r1 bank reembed make them anew"
        )


def claim_embedder(store: _Maker, ours: EmbedderId) -> None:
    """Note who makes a file's vectors, or check that it is the same; only inside a transaction; raises BankError."""
    stored = store.embedder()
    check_embedder(stored, ours)
    if stored is None:
        store.set_embedder(*ours)
