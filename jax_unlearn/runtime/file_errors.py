"""Errors of the file system that a user can fix, whichever library reports them."""

import errno
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

# Any other OSError is a bug and keeps its traceback.
USER_FIXABLE_ERRNOS = {
    errno.EACCES,
    errno.EBUSY,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
}
# Errors of writing alone; the file that shutil names first is the one that was read.
OF_WRITING = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS}
CURES = {
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENOSPC: "make room there",
}
# How safetensors (Rust), shutil and NumPy write an error number, or that a write was not complete.
NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
INCOMPLETE = re.compile(r"\d+ requested and \d+ written")


def number_of(error: BaseException) -> int | None:
    """The error number of a failure that a user can fix; None for any other failure."""
    number: int | None = None
    if isinstance(error, SafetensorError | shutil.Error):
        match = NUMBER.search(str(error))
        number = int(match[1] or match[2]) if match else None
    elif isinstance(error, OSError):
        number = error.errno
        if number is None and INCOMPLETE.fullmatch(str(error)):
            # NumPy does not say why; this is the usual reason.
            number = errno.ENOSPC
    return number if number in USER_FIXABLE_ERRNOS else None


def written_path(error: BaseException) -> Path | None:
    """The path that an error is about; of two paths, the one that was written."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        return Path(error.args[0][0][1])
    if isinstance(error, OSError):
        path = error.filename2 or error.filename
        return Path(os.fsdecode(path)) if isinstance(path, str | bytes) else None
    return None
