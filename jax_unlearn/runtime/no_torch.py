"""Keep torch from being imported: only the Hugging Face language model needs it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, cast

ADVISORY = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
# Whether `import_transformers` hides torch.
HIDING = ContextVar("HIDING", default=False)


@contextmanager
def without_torch() -> Iterator[None]:
    """Hide torch from transformers within a block, and leave the process as it was after it.

    transformers decides when it is imported whether torch is installed, so a copy of it that was
    imported within the block is forgotten, and the next import decides again.
    """
    earlier, advice = "transformers" in sys.modules, os.environ.get(ADVISORY)
    os.environ.setdefault(ADVISORY, "1")
    hiding = HIDING.set(True)
    try:
        yield
    finally:
        HIDING.reset(hiding)
        if advice is None:
            os.environ.pop(ADVISORY, None)
        if not earlier and "torch" not in sys.modules:
            for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
                del sys.modules[name]


def import_transformers() -> Any:
    """Import transformers, which takes a second, where it is needed.

    It imports torch wherever that is installed, except within `without_torch`: it checks for torch
    once and caches the answer. Nothing is hidden in a process that has already imported torch.
    """
    if HIDING.get() and "torch" not in sys.modules:
        sys.modules["torch"] = cast(ModuleType, None)
        try:
            from transformers.utils import is_torch_available

            is_torch_available()
        finally:
            del sys.modules["torch"]
    import transformers

    return transformers
