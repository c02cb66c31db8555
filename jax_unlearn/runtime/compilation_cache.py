"""Keep compiled programs between commands, by JAX's persistent compilation cache."""

import hashlib
import os
import platform
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# JAX's own variables: a folder of the user's choice, and whether there is a cache at all.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
# The setting that the first of them sets.
DIRECTORY = FOLDER.lower()
# What JAX takes for no.
OFF = ("n", "no", "f", "false", "off", "0")
# Programs that are rarely used are removed beyond this number of bytes.
LARGEST = 2**30
# Shorter compilations, in seconds, take about as long to read.
SHORTEST = 0.1


@contextmanager
def compiled_programs_kept(say: Callable[[str], None]) -> Iterator[None]:
    """Use the cache in the user's cache folder within a block, unless one was chosen already.

    Args:
        say: shows a line, if the folder cannot be used.
    """
    # Imported here because it takes half a second, and not every command compiles.
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    folder = None
    if not (
        FOLDER in os.environ
        or os.environ.get(ENABLED, "").lower() in OFF
        or getattr(jax.config, DIRECTORY)
    ):
        folder = usable_folder(say)
    if folder is None:
        yield
        return
    chosen = {
        DIRECTORY: str(folder),
        "jax_compilation_cache_max_size": LARGEST,
        "jax_persistent_cache_min_compile_time_secs": SHORTEST,
    }
    before = {name: getattr(jax.config, name) for name in chosen}
    try:
        set_config(chosen)
        yield
    finally:
        # Other programs of this process go on as if no command had been run.
        set_config(before)
        reset_cache()


def set_config(values: Mapping[str, Any]) -> None:
    import jax

    for name, value in values.items():
        jax.config.update(name, value)


def usable_folder(say: Callable[[str], None]) -> Path | None:
    """The folder, created for this user alone; None, and a line that says why, if it cannot be."""
    folder = user_folder()
    try:
        reason = "no home directory is known"
        if folder.is_absolute():
            folder.parents[2].mkdir(parents=True, exist_ok=True)
            # Who may write one of these could put another in its place.
            own = [folder.parents[1], folder.parents[0], folder]
            for one in own:
                one.mkdir(mode=0o700, exist_ok=True)
            reason = next(filter(None, map(unsafe, own)), "")
        if not reason and not os.access(folder, os.W_OK | os.X_OK):
            reason = "it cannot be written"
        if not reason:
            remove_unfinished(folder)
            return folder
    except OSError as error:
        reason = error.strerror or str(error)
    say(f"compiled programs are not kept in {folder}: {reason}; {FOLDER} names another folder")
    return None


def unsafe(folder: Path) -> str:
    """Why a folder may hold programs of somebody else, which would be run as they are read."""
    found = folder.stat()
    if found.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write {folder}"
    return ""


def user_folder() -> Path:
    """A folder for this kind of processor, whose programs another one may not be able to run."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if Path(cache).is_absolute() else Path(os.path.expanduser("~/.cache"))
    return base / "jax-unlearn" / "compiled" / processor()


def processor() -> str:
    """Digest of the processor's instruction sets."""
    kinds = [platform.machine()]
    facts = Path("/proc/cpuinfo")
    if os.access(facts, os.R_OK):
        lines = facts.read_text(errors="replace").splitlines()
        kinds += sorted({line for line in lines if line.startswith(("flags", "Features"))})
    return hashlib.sha256("\n".join(kinds).encode()).hexdigest()[:16]


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed has left half-written.

    JAX writes the time of use of an entry, `KEY-atime`, after the entry, `KEY-cache`, and holds a
    lock meanwhile.
    """
    import filelock

    lock = filelock.FileLock(folder / ".lockfile")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        # Another process is using it; the next command looks again.
        return
    try:
        for entry in folder.glob("*-cache"):
            time = entry.with_name(f"{entry.name.removesuffix('-cache')}-atime")
            if not time.exists() or not time.stat().st_size:
                entry.unlink()
    finally:
        lock.release()
