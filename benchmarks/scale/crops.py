"""Make many images, seeded crops of the shipped ones in tar shards, and run over them."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jax_unlearn.runtime.assets import ASSETS

CONCEPT = "astronaut"
SHARD = 1000
# Range of a crop's side in pixels, from the smallest that the shipped processor does not resize.
SIDES = (32, 64)


def make_images(folder: Path, count: int) -> None:
    """Create folders forget, preserve (shards), forget-held-out and preserve-held-out."""
    for side, which in (("forget", "train"), ("forget-held-out", "test")):
        shutil.copytree(ASSETS / "images" / which / CONCEPT, folder / side / CONCEPT)
    for source in sorted((ASSETS / "images" / "test").iterdir()):
        if source.name != CONCEPT:
            shutil.copytree(source, folder / "preserve-held-out" / source.name)
    sources = [
        path
        for path in sorted((ASSETS / "images" / "train").rglob("*.png"))
        if path.parent.name != CONCEPT
    ]
    random = np.random.default_rng(0)
    (folder / "preserve").mkdir()
    for first in range(0, count, SHARD):
        with tarfile.open(folder / "preserve" / f"{first:07d}.tar", "w") as tar:
            for number in range(first, min(first + SHARD, count)):
                source = sources[random.integers(len(sources))]
                data = crop(source, random)
                info = tarfile.TarInfo(f"{source.parent.name}/{number:07d}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def crop(path: Path, random: np.random.Generator) -> bytes:
    """A part of an image as a PNG, with noise that makes every crop different."""
    with Image.open(path) as file:
        image = np.asarray(file.convert("RGB"), np.int16)
    size = random.integers(*SIDES, size=2).clip(max=image.shape[:2])
    height, width = size
    top, left = (random.integers(0, image.shape[i] - size[i] + 1) for i in range(2))
    part = image[top : top + height, left : left + width]
    noisy = (part + random.integers(-1, 2, size=part.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "PNG")
    return buffer.getvalue()


def command(images: Path, out: Path, *more: str) -> list[str]:
    """The command of a run over these folders."""
    sides = [
        part
        for side in ("forget", "preserve", "forget-held-out", "preserve-held-out")
        for part in (f"--{side}", str(images / side))
    ]
    program = [sys.executable, "-m", "jax_unlearn", "run"]
    checkpoint = ["--checkpoint", str(ASSETS / "checkpoint"), "--out", str(out)]
    return [*program, *checkpoint, *sides, *more]


def launch(
    arguments: Sequence[str], cores: Sequence[int] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a command, pinned to `cores` if they are given."""
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    return subprocess.Popen(
        [*pinned, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def peak(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process, which must succeed; returns its peak memory in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.args
    return usage.ru_maxrss * 1024


def snapshots(saved: Path) -> set[str]:
    """Directories of complete snapshots below the one where a run saves them."""
    # Not with glob, which fails if a directory is removed while it searches.
    walked = os.walk(saved)
    return {f"{parent}/{name}" for parent, names, _ in walked for name in names if name.isdigit()}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def metrics(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "metrics.json").read_text()))
