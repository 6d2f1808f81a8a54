"""A scope as JSON lines: everything it holds, out and in again, so that people can move, keep and read it.

    {"format": "memory-r1 bank", "version": 1, "scope": "alice", "embedder": {"name": "...", "dimension": 384},
     "turns": 1, "operations": 1}
    {"turn": {"id": "t1", "speaker": "Alice", "text": "...", "at": null, "dialogue_id": "d", "done_at": "2026-..."}}
    {"operation": {"seq": 1, "kind": "ADD", "entry_id": "e1", "text": "...", ...}, "vector": "base64, float32"}

The entry versions follow from the operations and are not written twice. What is read is replayed against the rules of
the log before anything of it is stored.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from memory_r1.bank.check import UNIT_SLACK, EmbedderId, check_embedder, check_text, claim_embedder, embedded, id_of
from memory_r1.bank.column import Floats
from memory_r1.bank.embed import Embedder, usual_embedder
from memory_r1.bank.operation import LoggedOperation, OperationKind
from memory_r1.bank.record import KeptTurn, line_of, line_record, turn_of, turn_record
from memory_r1.bank.replay import Replay
from memory_r1.bank.search import searchable
from memory_r1.bank.store import FileStore
from memory_r1.errors import BankError, InputError

FORMAT, VERSION = "memory-r1 bank", 1
EMBED_AT_ONCE = 256

Progress = Callable[[int, int], None]  # (records done, records in all)


@dataclass(frozen=True)
class KeptLog:
    """A scope outside of any bank: its turns and its log, each in order.

    embedder   name and dimension of what made the vectors; None where there are none
    vectors    by line number, of the versions opened; may be empty: they can be made again
    """

    lines: tuple[LoggedOperation, ...]
    turns: tuple[KeptTurn, ...] = ()
    embedder: tuple[str, int] | None = None
    vectors: Mapping[int, Floats] = field(default_factory=dict)


def export_scope(
    path: Path | str, scope: str, out: TextIO, *, vectors: bool = True, progress: Progress | None = None
) -> None:
    """Write everything of a scope, from one snapshot, while others may go on writing.

    Args:
        vectors: without them the text is a tenth as long, and whoever imports it embeds the texts anew.

    Raises:
        InputError: there is no such file, or the scope holds nothing. BankFileError: not a bank, or not readable.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: no such bank, expected the file of one")
    with closing(FileStore(str(path), scope)) as store, store.snapshot():
        turns, operations = store.turn_count(), store.line_count()
        if not turns + operations:
            raise InputError(f"{path}: scope {scope!r} holds nothing, expected one of: {store.scopes()}")
        maker = store.embedder()
        embedder = {"name": maker[0], "dimension": maker[1]} if maker and vectors else None
        head = {"format": FORMAT, "version": VERSION, "scope": store.scope, "embedder": embedder}
        _write(out, {**head, "turns": turns, "operations": operations})
        for done, record in enumerate(_records(store, vectors), start=1):
            _write(out, record)
            if progress:
                progress(done, turns + operations)


def _records(store: FileStore, vectors: bool) -> Iterator[dict[str, object]]:
    for turn in store.kept_turns():
        yield {"turn": turn_record(turn)}
    for line, vector in store.lines_with_vectors():
        coded = {"vector": base64.b64encode(vector).decode("ascii")} if vectors and vector is not None else {}
        yield {"operation": line_record(line), **coded}


def _write(out: TextIO, record: Mapping[str, object]) -> None:
    out.write(json.dumps(record, ensure_ascii=False) + "\n")


def import_scope(
    path: Path | str, scope: str, kept: KeptLog, embedder: Embedder | None = None, progress: Progress | None = None
) -> None:
    """Fill an empty scope of a bank file, made where there is none, in one transaction.

    Ids, times and deciders stay. In a file whose numbers are taken by other scopes, operations and entries are
    numbered on from there. Vectors are taken over if this embedder made them, else made anew; None is the one that made
    the file's vectors, in a new file the one that made the log's, else the embedded all-MiniLM-L6-v2.

    Raises:
        InputError: the log breaks a rule; names the operation.
        BankError: the scope is not empty, or the file's vectors were made by another embedder.
        BankFileError: the file cannot be written.
        PolicyError: the embedder's model could not be loaded or reached.
    """
    check_log(kept)
    stored = _embedder_of(path, scope)
    embedder = embedder or usual_embedder(stored or kept.embedder)
    maker, vectors = _vectors(kept, stored, embedder, progress)  # before a file is made and before anybody waits
    with closing(FileStore(str(path), scope)) as store, store.transaction():
        _check_empty(store)
        if vectors:
            claim_embedder(store, maker)
        shift = max(0, store.head()[0] + 1 - kept.lines[0].seq) if kept.lines else 0
        store.append([_shifted(line, shift) for line in kept.lines], {n + shift: v for n, v in vectors.items()})
        store.keep_turns(kept.turns)


def check_log(kept: KeptLog) -> None:
    """Refuse a log that no bank could have written; raises InputError that names the operation or turn."""
    replay = Replay()
    for line in kept.lines:
        wrong = replay.take(line)
        if wrong:
            raise InputError(f"operation {line.seq}: {wrong}; nothing was imported")
    ids = Counter(one.turn.id for one in kept.turns)
    twice = next((turn_id for turn_id, count in ids.items() if count > 1), None)
    if twice is not None:
        raise InputError(f"turn {twice!r} is there twice, expected each turn once; nothing was imported")


def _embedder_of(path: Path | str, scope: str) -> EmbedderId | None:
    """What made the vectors of a file whose scope must be empty; a file that is not there is not made."""
    if not Path(path).exists():
        check_text("scope", scope)
        return None
    with closing(FileStore(str(path), scope)) as store:
        _check_empty(store)
        return store.embedder()


def _check_empty(store: FileStore) -> None:
    if store.turn_count() or store.line_count():
        raise BankError(f"scope {store.scope!r} is not empty: import into another scope, or delete this one first")


def _shifted(line: LoggedOperation, shift: int) -> LoggedOperation:
    """The line numbered higher by `shift`, and with it all that it refers to."""
    if not shift:
        return line
    entry_id = f"e{int(line.entry_id.removeprefix('e')) + shift}" if line.entry_id else None
    undoes = line.undoes + shift if line.undoes is not None else None
    return replace(line, seq=line.seq + shift, batch=line.batch + shift, undoes=undoes, entry_id=entry_id)


def _vectors(
    kept: KeptLog, stored: EmbedderId | None, embedder: Embedder, progress: Progress | None
) -> tuple[EmbedderId, dict[int, Floats]]:
    """Who made the vectors of the versions that a log opens, and the vectors by line number."""
    opened = [line for line in kept.lines if line.kind in (OperationKind.ADD, OperationKind.UPDATE)]
    made, whole = kept.embedder, all(line.seq in kept.vectors for line in opened)
    if whole and made and made[0] == embedder.name and made == id_of(embedder):  # a dimension may cost a request: last
        return made, {line.seq: kept.vectors[line.seq] for line in opened}
    if opened:
        check_embedder(stored, id_of(embedder))  # before hours of work
    vectors: dict[int, Floats] = {}
    for start in range(0, len(opened), EMBED_AT_ONCE):
        chunk = opened[start : start + EMBED_AT_ONCE]
        texts = [searchable(line.text or "", line.speaker) for line in chunk]
        vectors.update(zip((line.seq for line in chunk), embedded(embedder, texts), strict=True))
        if progress:
            progress(start + len(chunk), len(opened))
    return (id_of(embedder) if opened else ("", 0)), vectors


def read_log(path: Path, progress: Progress | None = None) -> KeptLog:
    """Read what `export_scope` wrote.

    Raises:
        InputError: the file is missing, not an export, of a newer version, cut off, or one of its lines is not a
            record of the schema; names the line and the field.
    """
    lines = _json_lines(path)
    head = _head(next(lines, None), path)
    turns: list[KeptTurn] = []
    operations: list[LoggedOperation] = []
    vectors: dict[int, Floats] = {}
    for number, record in lines:
        try:
            if "turn" in record:
                turns.append(turn_of(_fields(record, "turn")))
            else:
                operations.append(line_of(_fields(record, "operation")))
                if "vector" in record:
                    vectors[operations[-1].seq] = _vector(record["vector"], head["embedder"])
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if progress:
            progress(number - 1, head["turns"] + head["operations"])
    if (len(turns), len(operations)) != (head["turns"], head["operations"]):
        raise InputError(
            f"{path}: has {len(turns)} turns and {len(operations)} operations, its first line promises "
            f"{head['turns']} and {head['operations']}: is it cut off?"
        )
    return KeptLog(tuple(operations), tuple(turns), head["embedder"], vectors)


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise InputError(f"{path}, line {number}: got {line.strip()!r:.60}, expected a JSON object")
                yield number, record
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file, expected one that memory-r1 bank export wrote") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8, or nested without end
        raise InputError(f"{path}: not lines of JSON ({error}), expected what memory-r1 bank export wrote") from error


def _head(first: tuple[int, dict[str, Any]] | None, path: Path) -> dict[str, Any]:
    head = first[1] if first else {}
    if head.get("format") != FORMAT or not isinstance(head.get("version"), int):
        raise InputError(f"{path}: the first line does not say {FORMAT!r}, expected what memory-r1 bank export wrote")
    if head["version"] > VERSION:
        raise InputError(
            f"{path}: has version {head['version']}, this memory-r1 reads up to {VERSION}: install a newer"
        )
    if not all(isinstance(head.get(name), int) for name in ("turns", "operations")):
        raise InputError(f"{path}, line 1: expected how many turns and operations follow")
    return {**head, "embedder": _embedder(head.get("embedder"), path)}


def _embedder(value: object, path: Path) -> tuple[str, int] | None:
    if value is None:
        return None
    if isinstance(value, dict) and isinstance(value.get("name"), str) and isinstance(value.get("dimension"), int):
        return value["name"], value["dimension"]
    raise InputError(f"{path}, line 1: embedder is {value!r:.60}, expected its name and dimension, or null")


def _fields(record: dict[str, Any], name: str) -> dict[str, Any]:
    fields = record.get(name)
    if not isinstance(fields, dict) or record.keys() - {name, "vector"}:
        raise ValueError(f"got the fields {sorted(record)}, expected 'turn', or 'operation' and perhaps 'vector'")
    return fields


def _vector(coded: object, embedder: tuple[str, int] | None) -> Floats:
    if embedder is None:
        raise ValueError("has a vector, but the first line names no embedder")
    try:
        vector = np.frombuffer(base64.b64decode(str(coded), validate=True), dtype="<f4").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"vector cannot be read ({error}), expected float32 numbers in base64") from error
    if len(vector) != embedder[1] or not abs(float(np.linalg.norm(vector)) - 1) < UNIT_SLACK:
        raise ValueError(f"vector has {len(vector)} numbers, expected {embedder[1]}, together of length 1")
    return vector
