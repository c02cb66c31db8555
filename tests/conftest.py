"""What is set before anything of the tests is imported, and who imports what they share."""

import gc
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

HERE = Path(__file__).parent
# The files that take longest come first: otherwise one process works alone at the end.
LONGEST = (
    *("runtime/test_processes", "runs/test_ignored_settings", "docs/test_docs", "runs/test_cli"),
    *("runtime/test_resume", "attack/test_inputs", "runs/test_forgetting", "runs/test_clip"),
    *("runs/test_ledger", "porting/test_full_size"),
)

# Before NumPy and PyTorch are there. Two processes on two cores, with two threads each, wait for
# one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Most of the tests' time was the compiler's, over programs that run once on tiny shapes. With these
# it takes a quarter; in parts, for threads that are not there, a program takes longer in all.
# XLA_FLAGS= in the environment leaves it as it is.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1",
)
# Lowering writes the lines of Python into a program, which only a dump of it would show.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# What one process of the tests has compiled the others load, those that tests start as well. Not
# beyond the session: a process that is killed may leave an entry that is not whole.
session = TemporaryDirectory(prefix="jax-cache-", ignore_cleanup_errors=True)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", session.name)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_configure(config: pytest.Config) -> None:
    """Import what the tests share, but not where a process only hands them out to others."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        # Until all tests are collected (`tests/shared.py`): imports leave little garbage, and it
        # would be looked for among millions of objects, again and again.
        gc.disable()
        # The first before any module of ours, which it decorates.
        for name in ("tests.shape_checks", "tests.shared"):
            config.pluginmanager.import_plugin(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; the others stay in order."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(HERE).with_suffix("").as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)

    items.sort(key=place)
