"""SHA-256 digests of all images, computed in parallel by the processes of a run."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from jax_unlearn.data.images import ImageFile
from jax_unlearn.runtime import collectives, processes

# Length of a digest in bytes.
DIGEST = hashlib.sha256().digest_size


def same_listing(files: Sequence[ImageFile]) -> bool:
    """Whether all processes list the same files, by class, name and size (not by content)."""
    if processes.count() == 1:
        return True
    listing = hashlib.sha256("\n".join(file.entry for file in files).encode()).digest()
    return all(theirs == listing for theirs in collectives.all_gather_bytes(lambda: listing))


def read_digests(files: Sequence[ImageFile]) -> None:
    """Compute the digest of each file, in threads, since reading may wait for disk or network.

    Of several processes, each reads a share of the files and sends their digests to the others. If
    they do not list the same files, each reads all of its own, so that the error can name what
    differs.
    """
    new = [file for file in files if "digest" not in vars(file)]
    count, here = (processes.count(), processes.index()) if same_listing(new) else (1, 0)
    with ThreadPoolExecutor() as pool:
        read = b"".join(pool.map(lambda file: file.digest, new[here::count]))
    if count == 1:
        return
    others = [process for process in range(count) if process != here]
    for process, theirs in zip(others, collectives.all_gather_bytes(lambda: read), strict=True):
        for place, file in enumerate(new[process::count]):
            vars(file)["digest"] = theirs[place * DIGEST : (place + 1) * DIGEST]
