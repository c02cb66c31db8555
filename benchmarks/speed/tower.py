"""Images per second of the tower against Hugging Face's in PyTorch, on the same patches.

Both are timed alternately in this process on the same threads; a ratio is the median over the
repeats. Also measured: the matrix products of the blocks alone, a limit that no fusion can beat.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers import AutoModel, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from benchmarks.markdown import caption, refuse_equal, table_of
from jax_unlearn.data.batches import Batch, BatchPlanner, Item
from jax_unlearn.models.attention import frame_attention
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.models.qwen3_vision.packing import PackedPatches, frame_sizes, pack
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower, forward
from jax_unlearn.models.tower_jit import tower_jit
from jax_unlearn.runtime.assets import ASSETS
from porting import load_vision_tower

RESULTS = Path(__file__).parents[1] / "results" / "tower.json"
# Layers of a tower of Qwen3-VL 2B's widths; with a few of them a busy machine is done sooner.
DEPTHS = {"24 × 1024": 24, "4 × 1024": 4}
WIDTHS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "out_hidden_size": 2048,
}
# Patches of all images together: a batch of the full-size tower takes half a minute.
PATCHES = {"24 × 1024": 4096, "4 × 1024": 4096, "shipped": 8192}
LARGE = (32, range(12, 50, 2))
SIDES = {"24 × 1024": LARGE, "4 × 1024": LARGE, "shipped": (8, range(4, 18, 2))}
# Number of images of mixed sizes.
IMAGES = 20_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=[*PATCHES], default=[*PATCHES])
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=[*DTYPES],
        help="default: float32 and bfloat16; on a CPU bfloat16 for the shipped model alone",
    )
    parser.add_argument("--one-core", action="store_true", help="CPU seconds, on a busy machine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one_core:
        # Before JAX starts its threads. Other programs then change the figures little.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        for dtype in options.dtypes or usual_dtypes(model):
            with towers(model, dtype) as (exact, theirs, ours):
                for images in ("equal", "mixed"):
                    batch = grids(model, images, ours.config.padding_for_shape)
                    row = compare(exact, theirs, ours, *batch, options.repeats)
                    rows.append({"model": model, "dtype": dtype, "images": images, **row})
                    print(json.dumps(rows[-1], indent=1), flush=True)
                    # Written after each row, so that an error does not lose half an hour's work.
                    facts = {
                        "machine": machine(),
                        "one_core": options.one_core,
                        "load": os.getloadavg(),
                        "rows": rows,
                    }
                    options.out.write_text(json.dumps(facts, indent=1) + "\n")


def usual_dtypes(model: str) -> list[str]:
    """The dtypes to measure. In bfloat16 a wide tower takes hours on a CPU."""
    exact_only = jax.default_backend() == "cpu" and model != "shipped"
    return ["float32"] if exact_only else [*DTYPES]


@contextmanager
def towers(
    model: str, dtype: str
) -> Iterator[tuple[torch.nn.Module, torch.nn.Module, Qwen3VisionTower]]:
    """(Hugging Face's tower in float32, in `dtype`, both with sdpa; ours), with equal weights."""
    torch.manual_seed(0)
    if model == "shipped":
        checkpoint = ASSETS / "checkpoint"
        exact, theirs = (
            Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=kind).model.visual
            for kind in (torch.float32, DTYPES[dtype])
        )
        yield exact.eval(), theirs.eval(), load_vision_tower(checkpoint, dtype)
        return
    with TemporaryDirectory() as folder:
        depth = DEPTHS[model]
        levels = [depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1]
        shape = Qwen3VLVisionConfig(depth=depth, deepstack_visual_indexes=levels, **WIDTHS)
        Qwen3VLVisionModel(shape).save_pretrained(folder)
        exact, theirs = (
            AutoModel.from_pretrained(folder, dtype=kind) for kind in (torch.float32, DTYPES[dtype])
        )
        yield exact.eval(), theirs.eval(), load_vision_tower(folder, dtype)


def grids(model: str, images: str, spare: int) -> tuple[np.ndarray, Batch]:
    """Grid [n, 3] of a batch, squares or of a folder of mixed sizes, and how it is packed."""
    square, sides = SIDES[model]
    patches = PATCHES[model]
    return equal(patches, square) if images == "equal" else mixed(patches, sides, spare)


def equal(patches: int, side: int) -> tuple[np.ndarray, Batch]:
    """Grid [n, 3] of a batch of squares without padding, and the batch."""
    number = patches // side**2
    items = [Item(index, side**2) for index in range(number)]
    return np.array([[1, side, side]] * number), Batch(items, number, side**2)


def mixed(patches: int, sides: range, spare: int) -> tuple[np.ndarray, Batch]:
    """The batch of a folder of IMAGES images that is padded most like all of them; its grid."""
    random = np.random.default_rng(0)
    drawn = [[1, *random.choice(sides, size=2)] for _ in range(IMAGES)]
    items = [Item(index, int(np.prod(grid))) for index, grid in enumerate(drawn)]
    batches = list(BatchPlanner(patches, 4, spare).batches(items))
    full = sum(batch.patches for batch in batches) / sum(b.rows * b.length for b in batches)
    batch = min(batches, key=lambda b: abs(b.patches / (b.rows * b.length) - full))
    return np.array([drawn[item.index] for item in batch.items]), batch


def compare(
    exact: torch.nn.Module,
    theirs: torch.nn.Module,
    ours: Qwen3VisionTower,
    grid: np.ndarray,
    batch: Batch,
    repeats: int,
) -> dict[str, Any]:
    config = ours.config
    graphdef, state = nnx.split(ours)
    patches = int(grid.prod(axis=1).sum())
    pixels = np.random.default_rng(0).normal(size=(patches, config.patch_dim)).astype(np.float32)
    first, second = torch.from_numpy(pixels), torch.from_numpy(grid)

    def run_torch(tower: torch.nn.Module = theirs) -> Any:
        with torch.inference_mode():
            return tower(first.to(tower.dtype), second).pooler_output.float().numpy()

    def run_jax() -> Any:
        packed, slots = pack_batch(config, pixels, grid, batch)
        out = np.asarray(forward(graphdef, state, packed, None).pooler_output, np.float32)
        return out.reshape(-1, config.out_hidden_size)[slots[::4] // 4]

    begun = time.perf_counter()
    mine = run_jax()
    first_call = time.perf_counter() - begun
    right = run_torch(exact)
    errors = {
        name: float(np.linalg.norm(out - right) / np.linalg.norm(right))
        for name, out in (("torch", run_torch()), ("jax", mine))
    }
    seconds = in_turns({"torch": run_torch, "jax": run_jax}, repeats)
    parts = in_turns(
        torch_parts(config, grid, theirs.dtype) | jax_parts(config, batch), repeats, config.depth
    )
    ratios = [a / b for a, b in zip(seconds["torch"], seconds["jax"], strict=True)]
    return {
        "n_images": len(grid),
        "patches": patches,
        "padding": 1 - patches / (batch.rows * batch.length),
        # Errors of the Merger's output, against Hugging Face's in float32.
        "relative_error": errors,
        "compile_seconds": first_call - median(seconds["jax"]),
        "images_per_second": {k: len(grid) / median(v) for k, v in seconds.items()},
        "ratio": median(ratios),
        "ratios": ratios,
        "seconds": {k: median(v) for k, v in seconds.items()},
        "parts": {k: median(v) for k, v in parts.items()},
    }


def in_turns(
    runs: dict[str, Callable[[], Any]], repeats: int, times: int = 1
) -> dict[str, list[float]]:
    """Seconds of each run in `repeats` rounds, after one unmeasured call of each."""
    one_core = len(os.sched_getaffinity(0)) == 1
    clock = time.process_time if one_core else time.perf_counter
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            begun = clock()
            run()
            seconds[name].append(times * (clock() - begun))
    return seconds


def products(config: VisionConfig) -> list[tuple[int, int]]:
    """(in, out) of a block's four Linears."""
    d, f = config.hidden_size, config.intermediate_size
    return [(d, 3 * d), (d, d), (d, f), (f, d)]


def torch_parts(
    config: VisionConfig, grid: np.ndarray, dtype: torch.dtype
) -> dict[str, Callable[[], Any]]:
    """One layer's products, and its attention image by image as Hugging Face calls it."""
    sizes = frame_sizes(grid)
    heads = (config.num_heads, config.hidden_size // config.num_heads)
    pairs = [
        (torch.randn(sum(sizes), i, dtype=dtype), torch.randn(o, i, dtype=dtype))
        for i, o in products(config)
    ]
    frames = [[torch.randn(1, heads[0], n, heads[1], dtype=dtype) for _ in "qkv"] for n in sizes]
    attend = torch.nn.functional.scaled_dot_product_attention
    return {
        "torch products": lambda: [torch.nn.functional.linear(x, w) for x, w in pairs],
        "torch attention": lambda: [attend(*qkv) for qkv in frames],
    }


def pack_batch(
    config: VisionConfig, pixels: np.ndarray, grid: np.ndarray, batch: Batch
) -> tuple[PackedPatches, np.ndarray]:
    shape = {"rows": batch.rows, "length": batch.length}
    return pack(pixels, grid, merge=config.spatial_merge_size, side=config.table_side, **shape)


def jax_parts(config: VisionConfig, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Products and attention of our tower, in the shape that the batch is packed into."""
    rows, length = batch.rows, batch.length
    random = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), config.dtype)

    pairs = [(array(rows * length, i), array(i, o)) for i, o in products(config)]
    heads = (rows, length, config.num_heads, config.hidden_size // config.num_heads)
    qkv = [array(*heads) for _ in "qkv"]
    sizes = [item.patches for item in batch.items]
    filled = jnp.asarray(sizes + [0] * (rows - len(sizes)))
    precision = "highest" if config.dtype == "float32" else "default"

    @tower_jit()
    def multiply(pairs: list[tuple[jax.Array, jax.Array]]) -> list[jax.Array]:
        with jax.default_matmul_precision(precision):
            return [x @ w for x, w in pairs]

    @tower_jit()
    def attend(q: jax.Array, k: jax.Array, v: jax.Array, filled: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(precision):
            return frame_attention(q, k, v, filled, config.kernel)

    return {
        "jax products": lambda: jax.block_until_ready(multiply(pairs)),
        "jax attention": lambda: jax.block_until_ready(attend(*qkv, filled)),
    }


def machine() -> dict[str, Any]:
    names = (
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    versions = {"jax": jax.__version__, "torch": torch.__version__}
    accelerator = [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    return {
        "cpu": next(names, "not said"),
        **({"accelerator": accelerator[0]} if accelerator else {}),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def table(results: dict[str, Any]) -> str:
    """Images per second against PyTorch, and where the time goes."""
    rows, measured = [], []
    for row in results["rows"]:
        name = f"{row['model']}, {row['dtype']}, {row['n_images']} {row['images']} images"
        name += f", {row['padding']:.0%} padding" if row.get("padding") else ""
        measured.append((name, row))
        speed = row["images_per_second"]
        shown = [f"{speed[k]:.2f}" if speed[k] < 10 else f"{speed[k]:.0f}" for k in speed]
        parts = [
            f"{row['seconds'][k]:.2f}: {row['parts'][f'{k} products']:.2f}, "
            f"{row['parts'][f'{k} attention']:.2f}"
            for k in speed
        ]
        # 0 if an earlier row has compiled the same shape.
        compiling = f"{max(0.0, row['compile_seconds']):.1f}"
        # Rows of earlier runs have none.
        known = row.get("relative_error", {})
        errors = " / ".join(f"{error:.1e}" for error in known.values()) or "–"
        rows.append([name, *shown, f"**{row['ratio']:.2f}**", *parts, compiling, errors])
    refuse_equal("tower", measured)
    how = ""
    if results.get("one_core"):
        how = "\n\nCPU seconds of one core, because others used the machine"
        how += f" (load {results['load'][0]:.0f}); images a second of that time."
    header = ["tower, images in one batch", "torch, images/s", "JAX, images/s", "ratio"]
    header += [f"{k}, s: products, attention" for k in ("torch", "JAX")]
    header += ["compiling, s", "error, torch / JAX"]
    return f"{caption(results['machine'], 'speed.tower')}{how}\n\n{table_of(header, rows)}"


if __name__ == "__main__":
    main()
