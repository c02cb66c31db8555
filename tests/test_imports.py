"""Who imports whom: no room what comes after it, and what a user runs no PyTorch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

IMPORT = """
import sys, jax_unlearn, porting
assert not {"torch", "peft", "transformers"} & set(sys.modules)
"""
# As on a machine without it: transformers would import torch wherever it is installed.
WITHOUT_TORCH = """
import sys
sys.modules |= {"torch": None, "peft": None}
import numpy as np
from jax_unlearn.models.lora import LoraAdapter, LoraPair
import porting
tower = porting.load_vision_tower(checkpoint)
# Only a config.json that leaves something out needs it, which takes a second.
assert "transformers" not in sys.modules
tower(np.zeros((24, 96), np.float32), np.array([[1, 4, 6]]))
pair = LoraPair(a=np.ones((1, 128), np.float32), b=np.ones((24, 1), np.float32))
adapter = LoraAdapter({"merger.linear_fc2": pair}, alpha=1.0, rank=1)
porting.save_peft(adapter, "adapter", base_model_name_or_path=checkpoint)
porting.merge_checkpoint(porting.load_peft("adapter"), checkpoint, "merged", undo="undo")
porting.unmerge_checkpoint("merged", "undo", "back")
"""


def run(program, folder):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_us_imports_no_torch(tmp_path):
    run(IMPORT, tmp_path)


def test_port_forward_and_export_without_torch(tiny_dir, tmp_path):
    run(f"checkpoint = {str(tiny_dir)!r}\n{WITHOUT_TORCH}", tmp_path)


ROOT = Path(__file__).parents[1]
# Each imports only what stands in a row above it, and itself; those in one row are side by side.
FLOORS = (
    ("runtime",),
    ("models",),
    ("data",),
    ("features",),
    ("objective",),
    ("solvers", "evaluate"),
    ("attacks",),
    ("runs",),
)
ROOMS = [room for floor in FLOORS for room in floor]
# Of our rooms; and `runs` alone may import porting.
UNDER_PORTING = {"runtime", "models"}
LONGEST = 350


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


OURS = [*files("jax_unlearn"), *files("porting")]


def name_of(file: Path) -> str:
    """The module's, as one imports it."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in OURS}


@cache
def imported(file: Path) -> frozenset[str]:
    """Full names of the modules of this repository that a file imports, at any depth of it."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}:{node.lineno}: import by the full name"
                module = node.module or ""
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    yield inner if inner in MODULES else module

    known = ("jax_unlearn", "porting", "benchmarks", "tests")
    return frozenset(name for name in names() if name.split(".")[0] in known)


def room_of(module: str) -> str | None:
    """`models` of jax_unlearn.models.lora; None of what lies beside the rooms."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jax_unlearn" and parts[1:] and parts[1] in ROOMS else None


def allowed_in(room: str) -> set[str]:
    """The rooms that one may import."""
    (floor,) = (i for i, floor in enumerate(FLOORS) if room in floor)
    return {room, *(below for floor in FLOORS[:floor] for below in floor)}


def test_the_imports_are_seen():
    """Or the tests below hold for nothing."""
    seen = imported(ROOT / "jax_unlearn" / "runs" / "pipeline.py")
    assert {"porting", "jax_unlearn.runtime.collectives", "jax_unlearn.solvers.config"} <= seen
    # Also where one stands inside a function.
    assert "tests.tiny" in imported(Path(__file__).parent / "running.py")
    assert len(OURS) > 100


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_room_above_it_or_beside_it(room):
    allowed = allowed_in(room)
    for file in files(f"jax_unlearn/{room}"):
        for module in imported(file):
            where = f"{file.relative_to(ROOT)} imports {module}"
            if module.split(".")[0] == "porting":
                assert room == "runs", where
                continue
            assert module.split(".")[0] == "jax_unlearn", where
            # The package itself is over all rooms; the command line says its version.
            assert room_of(module) in allowed or (module, room) == ("jax_unlearn", "runs"), where


def test_porting_stands_on_models_and_runtime():
    for file in files("porting"):
        for module in imported(file):
            where = f"{file.relative_to(ROOT)} imports {module}"
            assert module.split(".")[0] == "porting" or room_of(module) in UNDER_PORTING, where


def test_there_is_no_circle():
    graph = {name: imported(file) - {name} for name, file in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


def test_the_rooms_and_a_few_files():
    own = [path for path in (ROOT / "jax_unlearn").iterdir() if path.name != "__pycache__"]
    assert {path.name for path in own if path.is_dir()} == {*ROOMS, "assets"}
    assert sum(path.suffix == ".py" for path in own) <= 4


def test_no_file_is_long():
    lines = {name_of(file): len(file.read_text().splitlines()) for file in OURS}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}
