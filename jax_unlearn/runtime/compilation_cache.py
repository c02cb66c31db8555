"""Keep compiled programs between commands, by JAX's persistent compilation cache."""

import hashlib
import os
import platform
import stat
from collections.abc import Callable
from pathlib import Path

# JAX's own variables: a folder of the user's choice, and whether there is a cache at all.
FOLDER = "JAX_COMPILATION_CACHE_DIR"
ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
# What JAX takes for no.
OFF = ("n", "no", "f", "false", "off", "0")
# Programs that are rarely used are removed beyond this number of bytes.
LARGEST = 2**30
# Shorter compilations, in seconds, take about as long to read.
SHORTEST = 0.1


def keep_compiled_programs(say: Callable[[str], None]) -> None:
    """Switch the cache on, in the user's cache folder, unless JAX's variables say otherwise.

    Args:
        say: shows a line, if the folder cannot be used.
    """
    if FOLDER in os.environ or os.environ.get(ENABLED, "").lower() in OFF:
        # JAX reads both by itself.
        return
    folder = user_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        # Programs are run as they are read, so that nobody else may write them.
        if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            reason = "others may write it"
        elif not os.access(folder, os.W_OK | os.X_OK):
            reason = "it cannot be written"
        else:
            reason = ""
            remove_unfinished(folder)
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        say(f"compiled programs are not kept in {folder}: {reason}; {FOLDER} names another folder")
        return
    # Imported here because it takes half a second, and not every command compiles.
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST)


def user_folder() -> Path:
    """A folder for this kind of processor, whose programs another one may not be able to run."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if Path(cache).is_absolute() else Path(os.path.expanduser("~/.cache"))
    return base / "jax-unlearn" / "compiled" / processor()


def processor() -> str:
    """Digest of the processor's instruction sets."""
    kinds = [platform.machine()]
    facts = Path("/proc/cpuinfo")
    if facts.exists():
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
