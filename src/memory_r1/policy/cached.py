"""A policy whose greedy completions are kept in a file: no prompt is completed twice, in this run or in a later one.

What is kept is found again by everything that a greedy completion depends on: the policy with its weights and their
precision, the messages, the token limit and the schema. What is drawn by chance is never kept. Several processes may
use one file. Left out: an end to its growth; the file may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from memory_r1.errors import InputError
from memory_r1.policy.base import Completion, Policy, Prompt, Sampling
from memory_r1.policy.local import LocalPolicy

_PATIENCE_S = 60  # for another process that writes
_ASKED_AT_ONCE = 500  # keys in one query, below SQLite's limit


class CachedPolicy:
    """Asks another policy for what the file does not have.

    Args:
        policy: any.
        file: an SQLite file of this class; made where there is none, with its folder.

    Raises:
        InputError: the file is something else, or cannot be written.
        ModelError: a local policy's model is not there.
    """

    def __init__(self, policy: Policy, file: Path) -> None:
        self.policy = policy
        self._file = file
        self._weights = weights_of(policy)
        with self._connected() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, completion TEXT)")

    @property
    def name(self) -> str:
        """The other policy's name."""
        return self.policy.name

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """One completion per prompt; one that was kept says in `waited_s` how long it took when it was made.

        Raises:
            PolicyError: as the other policy does; nothing new is kept.
        InputError: the file can no longer be used.
        """
        if sampling.temperature > 0:
            return self.policy.complete(prompts, sampling)
        keys = [self._key(prompt, sampling) for prompt in prompts]
        kept = self._read(keys)
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in kept}
        began = time.perf_counter()
        made = self.policy.complete(list(missing.values()), sampling) if missing else []
        seconds = (time.perf_counter() - began) / max(1, len(made))
        fresh = dict(zip(missing, made, strict=True))
        self._write({key: replace(completion, waited_s=seconds) for key, completion in fresh.items()})
        return [fresh[key] if key in fresh else kept[key] for key in keys]

    def _key(self, prompt: Prompt, sampling: Sampling) -> str:
        content = [self._weights, list(prompt), sampling.max_tokens, sampling.schema]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _read(self, keys: Sequence[str]) -> dict[str, Completion]:
        found: dict[str, Completion] = {}
        with self._connected() as connection:
            for start in range(0, len(keys), _ASKED_AT_ONCE):
                part = keys[start : start + _ASKED_AT_ONCE]
                marks = ", ".join("?" * len(part))
                rows = connection.execute(f"SELECT key, completion FROM completions WHERE key IN ({marks})", part)
                found.update({key: _completion(json.loads(text)) for key, text in rows})
        return found

    def _write(self, made: Mapping[str, Completion]) -> None:
        if not made:
            return
        rows = [(key, json.dumps(asdict(completion))) for key, completion in made.items()]
        with self._connected() as connection:
            connection.executemany("INSERT OR IGNORE INTO completions VALUES (?, ?)", rows)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """One transaction on the file; raises InputError where it cannot be made or used."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=_PATIENCE_S)) as connection, connection:
                yield connection
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"{self._file}: cannot keep completions ({error}), expected such a file, or a new name where it can be"
            ) from error


def weights_of(policy: Policy) -> str:
    """What tells one policy's weights from another's: its name; of a local model also its files and precision.

    Raises:
        ModelError: a local policy's model is not there.
    """
    if isinstance(policy, CachedPolicy):
        return weights_of(policy.policy)
    if not isinstance(policy, LocalPolicy):
        return policy.name
    place = Path(policy.place)
    files = sorted(file for file in place.iterdir() if file.is_file()) if place.is_dir() else []
    return json.dumps([policy.name, policy.place, policy.dtype, policy.version, list(_stamps(files))])


def _stamps(files: Iterable[Path]) -> Iterable[tuple[str, int, int]]:
    """Name, size and time of change: reading gigabytes to hash them would cost more than it saves."""
    for file in files:
        status = file.stat()
        yield file.name, status.st_size, status.st_mtime_ns


def _completion(kept: Mapping[str, Any]) -> Completion:
    return Completion(**{**kept, "tokens": tuple(kept["tokens"]), "logprobs": tuple(kept["logprobs"])})
