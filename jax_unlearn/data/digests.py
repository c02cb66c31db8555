"""SHA-256 of every image, shared between the processes of a run."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jax_unlearn.data.images import ImageFile
from jax_unlearn.runtime import collectives, processes

# Bytes of a sample's digest.
DIGEST = hashlib.sha256().digest_size


def listed_alike(files: Sequence[ImageFile]) -> bool:
    """Whether all processes list these, as far as can be told without reading them."""
    if processes.count() == 1:
        return True
    listing = hashlib.sha256("\n".join(file.entry for file in files).encode()).digest()
    return all(theirs == listing for theirs in collectives.all_gather_bytes(lambda: listing))


def read_digests(files: Sequence[ImageFile]) -> None:
    """Each file's digest, from several threads: one would wait for a disk or a network.

    Of several processes each reads a part of the files and tells the others. Where they do not list
    the same ones each reads all that it has, so that the run can say what differs.
    """
    new = [file for file in files if "digest" not in vars(file)]
    count, here = (processes.count(), processes.index()) if listed_alike(new) else (1, 0)
    with ThreadPoolExecutor() as pool:
        read = b"".join(pool.map(lambda file: file.digest, new[here::count]))
    if count == 1:
        return
    others = [process for process in range(count) if process != here]
    for process, theirs in zip(others, collectives.all_gather_bytes(lambda: read), strict=True):
        for place, file in enumerate(new[process::count]):
            vars(file)["digest"] = theirs[place * DIGEST : (place + 1) * DIGEST]
