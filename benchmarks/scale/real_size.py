"""Runs and exports at the size of Qwen3-VL-2B: time, CPU time and peak memory of each command.

The checkpoint has the shapes, dtype and shards of the 2B model, and random weights, since no real
ones can be downloaded: what is measured is time and memory, not forgetting. The photographs are
those of scikit-image, cut into 48 parts of 256 × 256 pixels. Each command is a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import skimage.data
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from benchmarks.harness import RESULTS, write
from benchmarks.markdown import caption, table_of
from benchmarks.scale.accelerator import PREPROCESSOR
from benchmarks.speed.tower import machine

VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SHARD_BYTES = 2 * 10**9
SIDE = 256
FORGET = {"astronaut": 12}
SECOND = {"coffee": 9}
KEEP = {"cat": 9, "rocket": 9, "retina": 9}


# A small process that starts the command, since the memory of its parent counts as its peak.
LAUNCHER = """
import json, os, subprocess, sys, time
begun = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - begun
figures = {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime}
print(json.dumps({**figures, "peak": usage.ru_maxrss}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main() -> None:
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint, merged = folder / "checkpoint", folder / "merged"
        make_checkpoint(checkpoint)
        photos = photographs(folder / "photos")
        inspect = ["inspect", str(checkpoint)]
        first = ["run", "--checkpoint", str(checkpoint), *photos, "--concept", "astronaut"]
        second = ["run", "--checkpoint", str(merged), *photos, "--concept", "coffee"]
        commands = {
            "inspect": inspect,
            "run, 48 photographs": [*first, "--out", str(folder / "run")],
            "export, merged": ["export", str(folder / "run"), "--out", str(merged)],
            "export, for PEFT": export(folder / "run", folder / "peft", "peft"),
            "run of a second concept on the merged result": [*second, "--out", str(folder / "two")],
            "export of the second, merged": [
                "export",
                str(folder / "two"),
                "--out",
                str(folder / "m2"),
            ],
        }
        rows = []
        for name, command in commands.items():
            rows.append({"command": name, **measure(command)})
            print(json.dumps(rows[-1]), flush=True)
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        facts = json.loads((folder / "run" / "metrics.json").read_text())
    results = {
        "machine": machine(),
        "bytes": size,
        "images": facts["tower"]["images"],
        "rows": rows,
    }
    write(RESULTS / "real_size.json", results)


def export(run: Path, out: Path, form: str) -> list[str]:
    return ["export", str(run), "--format", form, "--out", str(out)]


def make_checkpoint(directory: Path) -> None:
    """A sharded checkpoint in bfloat16 with random weights."""
    config = Qwen3VLConfig(vision_config=VISION, text_config=TEXT, tie_word_embeddings=True)
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    shapes = {
        key: tuple(x.shape) for key, x in model.state_dict().items() if key != "lm_head.weight"
    }
    random = np.random.default_rng(0)
    index: dict[str, str] = {}
    part: dict[str, np.ndarray] = {}
    for key, shape in shapes.items():
        part[key] = tensor(key, shape, random)
        if sum(x.nbytes for x in part.values()) > SHARD_BYTES or key == [*shapes][-1]:
            name = f"model-{len(set(index.values())):05}.safetensors"
            save_file(part, directory / name)
            index |= dict.fromkeys(part, name)
            part = {}
    weight_map = json.dumps({"metadata": {}, "weight_map": index})
    (directory / "model.safetensors.index.json").write_text(weight_map)


def tensor(key: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Random weights of the tower, scaled for stable activations; the language model's are zero."""
    if ".visual." not in key:
        return np.zeros(shape, ml_dtypes.bfloat16)
    if "norm" in key and key.endswith("weight"):
        return np.ones(shape, ml_dtypes.bfloat16)
    return (random.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)


def photographs(folder: Path) -> list[str]:
    """Make all photographs, each class in a folder; the options of a run over them."""
    for name, count in (FORGET | SECOND | KEEP).items():
        make_photos(folder / name, name, count)
    return ["--forget", str(folder), "--preserve", str(folder)]


def make_photos(folder: Path, name: str, count: int) -> None:
    """Parts of one of scikit-image's photographs."""
    folder.mkdir(parents=True)
    image = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    random = np.random.default_rng(1)
    for number in range(count):
        left, top = (random.integers(0, max(1, side - SIDE)) for side in image.size)
        image.crop((left, top, left + SIDE, top + SIDE)).save(folder / f"{number}.png")


def measure(arguments: Sequence[str]) -> dict[str, Any]:
    """Wall time, CPU time and peak memory of a command, which must succeed."""
    command = [sys.executable, "-m", "jax_unlearn", *arguments]
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {**figures, "peak": figures["peak"] * 1024}


def table(results: dict[str, Any]) -> str:
    rows = [
        [
            row["command"],
            f"{row['seconds']:.0f}",
            f"{row['cpu_seconds']:.0f}",
            f"{row['peak'] / 1e9:.2f}",
        ]
        for row in results["rows"]
    ]
    header = ["command", "seconds", "CPU seconds", "peak memory, GB"]
    size = f"A checkpoint of {results['bytes'] / 1e9:.1f} GB on disk, {results['images']} images."
    return f"{caption(results['machine'], 'scale.real_size')}\n\n{size}\n\n{table_of(header, rows)}"


if __name__ == "__main__":
    main()
