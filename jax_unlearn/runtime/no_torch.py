"""Keep torch from being imported: only the Hugging Face language model needs it."""

import os
import sys
from types import ModuleType
from typing import cast


def hide_torch() -> None:
    """Keep transformers from importing torch, as it does wherever torch is installed.

    transformers checks for torch once and caches the answer. Has no effect in a process that has
    already imported torch.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = cast(ModuleType, None)
    try:
        from transformers.utils import is_torch_available

        is_torch_available()
    finally:
        del sys.modules["torch"]
