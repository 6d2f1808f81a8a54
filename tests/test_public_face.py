"""What `import memory_r1` gives, and what it does not cost."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import memory_r1

HEAVY = ("torch", "transformers", "sentence_transformers", "peft", "nltk", "openai", "matplotlib", "tyro")
LOOK = """
import sys, time
import {module}
print([name for name in {heavy} if name in sys.modules])
print(time.process_time())
"""


def test_every_name_of_the_public_face_is_there_and_documented() -> None:
    assert memory_r1.__all__ == sorted(memory_r1.__all__)
    for name in memory_r1.__all__:
        assert getattr(memory_r1, name).__doc__, name


def test_a_star_import_gives_the_public_face_and_no_more() -> None:
    names: dict[str, object] = {}
    exec("from memory_r1 import *", names)
    assert set(names) - {"__builtins__"} == set(memory_r1.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        memory_r1.Policy  # type: ignore[attr-defined] # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert memory_r1.__version__ == version("memory-r1")


@pytest.mark.parametrize(
    ("module", "allowed"), [("memory_r1", []), ("memory_r1.cli", ["tyro"]), ("memory_r1.bench.run", [])]
)
def test_nothing_heavy_is_imported_before_it_is_needed(module: str, allowed: list[str]) -> None:
    look = LOOK.format(module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    found, seconds = done.stdout.splitlines()
    print(f"import {module}: {float(seconds):.2f} s of processor time")
    assert found == str(allowed)
