"""Reading the records of benchmark files, so that what is wrong is said by record and field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory_r1.errors import DialogueError


def read_bytes(path: Path, expected: str) -> bytes:
    """The file's bytes, unpacked where its name ends in .gz.

    Args:
        expected: what the file should be, for the message.

    Raises:
        DialogueError: there is no such file, or it cannot be read.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError as error:
        raise DialogueError(f"{path}: no such file, expected {expected}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DialogueError(f"{path}: cannot be read: {error}") from error


def json_list(content: bytes, path: Path, expected: str) -> list[Any]:
    """The records of a file that is one JSON list; raises DialogueError."""
    try:
        records = json.loads(content)
    except ValueError as error:  # not JSON, or not UTF-8
        raise DialogueError(f"{path}: not JSON ({error}), expected {expected}") from error
    if not isinstance(records, list) or not records:
        raise DialogueError(f"{path}: got {type(records).__name__}, expected a JSON list of samples, at least one")
    return records


def json_lines(content: bytes, path: Path, expected: str) -> list[Any]:
    """The records of a file that has one JSON value a line; raises DialogueError."""
    records = []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except ValueError as error:
                raise DialogueError(f"{path}, line {number}: not JSON ({error}), expected {expected}") from error
    if not records:
        raise DialogueError(f"{path}: has no records, expected {expected}")
    return records


def object_of(record: object, where: str) -> Mapping[str, Any]:
    """A record that must be a JSON object; raises DialogueError."""
    if not isinstance(record, dict):
        raise DialogueError(f"{where}: got {type(record).__name__}, expected a JSON object")
    return record


def field_of(fields: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field's value, checked to be of this kind; raises DialogueError."""
    if name not in fields:
        raise DialogueError(f"{where}: field {name!r} is missing")
    value = fields[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DialogueError(f"{where}: field {name!r} is {value!r:.60}, expected {kinds}")
    return value
