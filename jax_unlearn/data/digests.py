"""Digest and readability of every image, shared between the processes of a run."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jax_unlearn.data.images import Contents, ImageFile
from jax_unlearn.runtime import collectives, processes

# The name under which `ImageFile.contents` is cached.
CACHED = "contents"


def listed_alike(files: Sequence[ImageFile]) -> bool:
    """Whether all processes list these files, as far as can be said without reading them."""
    if processes.count() == 1:
        return True
    listing = hashlib.sha256("\n".join(file.entry for file in files).encode()).digest()
    return all(theirs == listing for theirs in collectives.all_gather_bytes(lambda: listing))


def read_contents(files: Sequence[ImageFile]) -> None:
    """Read and decode each file once, in several threads: one would wait for a disk or a network.

    Each of several processes reads a part of the files and sends digests and faults to the others.
    If they do not list the same files, each reads all that it has, so that the run can say what
    differs.
    """
    new = [file for file in files if CACHED not in vars(file)]
    count, here = (processes.count(), processes.index()) if listed_alike(new) else (1, 0)
    with ThreadPoolExecutor() as pool:
        read = [*pool.map(lambda file: file.contents, new[here::count])]
    if count == 1 or not new:
        return
    ours = json.dumps([(one.digest.hex(), one.fault) for one in read]).encode()
    others = [process for process in range(count) if process != here]
    for process, theirs in zip(others, collectives.all_gather_bytes(lambda: ours), strict=True):
        for file, (digest, fault) in zip(new[process::count], json.loads(theirs), strict=True):
            vars(file)[CACHED] = Contents(bytes.fromhex(digest), fault)
