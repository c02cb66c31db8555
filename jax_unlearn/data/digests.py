"""Digest and readability of all images, computed in parallel by the processes of a run."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jax_unlearn.data.images import Contents, ImageFile
from jax_unlearn.runtime import collectives, processes

# Attribute in which `ImageFile.contents` is cached.
CACHED = "contents"


def same_listing(files: Sequence[ImageFile]) -> bool:
    """Whether all processes list the same files, by class, name and size (not by content)."""
    if processes.count() == 1:
        return True
    listing = hashlib.sha256("\n".join(file.entry for file in files).encode()).digest()
    return all(theirs == listing for theirs in collectives.all_gather_bytes(lambda: listing))


def read_contents(files: Sequence[ImageFile]) -> None:
    """Read and decode each file once, in threads, since reading may wait for disk or network.

    Of several processes, each reads a share of the files and sends digests and faults to the
    others. If they do not list the same files, each reads all of its own, so that the error can
    name what differs.
    """
    new = [file for file in files if CACHED not in vars(file)]
    count, here = (processes.count(), processes.index()) if same_listing(new) else (1, 0)
    with ThreadPoolExecutor() as pool:
        read = [*pool.map(lambda file: file.contents, new[here::count])]
    if count == 1 or not new:
        return
    ours = json.dumps([(one.digest.hex(), one.fault) for one in read]).encode()
    others = [process for process in range(count) if process != here]
    for process, theirs in zip(others, collectives.all_gather_bytes(lambda: ours), strict=True):
        for file, (digest, fault) in zip(new[process::count], json.loads(theirs), strict=True):
            vars(file)[CACHED] = Contents(bytes.fromhex(digest), fault)
