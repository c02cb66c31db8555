"""Running without torch where it is installed: only what asks the Hugging Face model needs it."""

import os
import sys
from types import ModuleType
from typing import cast


def hide_torch() -> None:
    """Keep transformers from importing torch, which it does wherever torch is installed.

    transformers looks for it once and remembers. A process that has torch already keeps it.
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
