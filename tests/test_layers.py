"""The drawing of the house: imports run downward only, and nowhere in a circle. Imports in functions count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import memory_r1

ROOT = Path(memory_r1.__file__).parent
FLOORS = [
    {"errors", "data"},
    {"endpoint"},
    {"dialogue", "policy", "bank"},
    {"memory", "lives"},
    {"bench", "serve"},
    {"rl"},
    {"cli"},
]
FLOOR = {part: number for number, floor in enumerate(FLOORS) for part in floor}
HEAVY = {"torch", "transformers", "sentence_transformers", "peft", "accelerate", "vllm"}
HEAVY |= {"matplotlib", "nltk", "openai", "gguf"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in ROOT.rglob("*.py")}


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a module names in its imports, those within functions and under TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in TREES else node.module


GRAPH: Mapping[str, set[str]] = {
    name: {imported for imported in imports(tree) if imported in TREES and imported != name}
    for name, tree in TREES.items()
}


def part_of(module: str) -> str:
    """The part of the house: "memory_r1.bank.log" is in "bank"; the public face is in none."""
    return module.removeprefix("memory_r1").lstrip(".").split(".")[0]


@pytest.mark.parametrize("module", sorted(GRAPH.keys() - {"memory_r1"}))  # the public face may import every part
def test_a_module_imports_only_its_own_part_and_lower_floors(module: str) -> None:
    own = part_of(module)
    assert own in FLOOR, f"{own} stands on no floor of the design"
    for imported in GRAPH[module]:
        part = part_of(imported)
        assert part == own or FLOOR.get(part, len(FLOORS)) < FLOOR[own], f"{module} imports {imported}"


RL_FLOORS = [
    {"types", "order", "course", "rollout"},
    {"model", "tasks"},
    {"algorithms"},
    {"run"},
    {"trajectories", "settings", "identity", "estimate"},
    {"report"},
    {"train", "publish"},
]
RL_FLOOR = {part: number for number, floor in enumerate(RL_FLOORS) for part in floor}


@pytest.mark.parametrize("module", sorted(name for name in GRAPH if name.startswith("memory_r1.rl.")))
def test_within_the_training_too_imports_run_downward(module: str) -> None:
    own, alone = (module.split(".")[2], module.count(".") == 2)
    floor = RL_FLOOR[own]
    for imported in GRAPH[module]:
        if imported.startswith("memory_r1.rl."):
            part = imported.split(".")[2]
            under = RL_FLOOR[part]
            # files that stand alone on a floor may use one another, folders on one floor may not
            assert part == own or under < floor or (alone and under == floor), f"{module} imports {imported}"


def test_no_imports_run_in_a_circle() -> None:
    try:
        order = list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")
    assert len(order) == len(TREES)


def test_the_errors_stand_on_the_ground() -> None:
    assert set(imports(TREES["memory_r1.errors"])) == set()


def test_every_import_of_the_house_is_of_a_module_that_is_there() -> None:
    for name, tree in TREES.items():
        for imported in imports(tree):
            assert not imported.startswith("memory_r1") or imported in TREES, f"{name} imports {imported}"


@pytest.mark.parametrize("module", sorted(TREES))
def test_heavy_libraries_are_imported_only_within_functions(module: str) -> None:
    top = [node for node in TREES[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {name.split(".")[0] for node in top for name in imports(node)}
    assert not named & HEAVY


def test_the_walk_sees_imports_in_functions_and_under_type_checking() -> None:
    source = "if TYPE_CHECKING:\n    from memory_r1.bank import Bank\ndef f():\n    import memory_r1.rl.train\n"
    assert set(imports(ast.parse(source))) == {"memory_r1.bank", "memory_r1.rl.train"}
