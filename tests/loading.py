"""A checkpoint's model is loaded once in a process of tests, and so is its tokenizer.

It was a fifth of the time of a tiny run, and most runs of the tests are of the same checkpoints.
`tests/shared.py` puts `once` around what runs call. The tests in tests/porting and tests/runtime
call `porting.clip` and `porting.qwen3_vision` themselves, and processes of their own load theirs.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

# Enough for the checkpoints of a file of tests; not for those of a real model's size.
KEPT, LARGEST = 4, 2**26


def files(directory: Path) -> tuple[tuple[str, int, int, int], ...]:
    """What changes where a file of a checkpoint does."""
    found = ((path.name, path.stat()) for path in sorted(directory.iterdir()))
    return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def once(load: Callable[..., Any]) -> Callable[..., Any]:
    """`load`, whose first argument is a checkpoint's folder, once for the same files."""
    kept: OrderedDict[Any, Any] = OrderedDict()

    @wraps(load)
    def loaded(*given: Any, **named: Any) -> Any:
        checkpoint, *options = given or [None]
        if named or not isinstance(checkpoint, Path) or not checkpoint.is_dir():
            return load(*given, **named)
        own = files(checkpoint)
        if sum(size for *_, size in own) > LARGEST:
            return load(checkpoint, *options)
        key = (checkpoint, *options, own)
        found = kept.pop(key, None) or load(checkpoint, *options)
        kept[key] = found
        if len(kept) > KEPT:
            kept.popitem(last=False)
        return found

    return loaded
