"""Keep torch from being imported: only the Hugging Face language model needs it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

ADVISORY = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


@contextmanager
def without_torch() -> Iterator[None]:
    """Hide torch within a block, and leave the process as it was after it.

    transformers decides when it is imported whether torch is installed, so a copy of it that was
    imported within the block is forgotten, and the next import decides again.
    """
    earlier, advice = "transformers" in sys.modules, os.environ.get(ADVISORY)
    hide_torch()
    try:
        yield
    finally:
        if advice is None:
            os.environ.pop(ADVISORY, None)
        if not earlier and "torch" not in sys.modules:
            for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
                del sys.modules[name]


def hide_torch() -> None:
    """Keep transformers from importing torch, as it does wherever torch is installed.

    transformers checks for torch once and caches the answer. Has no effect in a process that has
    already imported torch.
    """
    os.environ.setdefault(ADVISORY, "1")
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = cast(ModuleType, None)
    try:
        from transformers.utils import is_torch_available

        is_torch_available()
    finally:
        del sys.modules["torch"]
