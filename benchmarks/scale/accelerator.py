"""Speed and memory of the programs of a pass on this machine's accelerator.

tower: images per second of the program of a pass with each attention kernel, and of Hugging Face's
tower in PyTorch with sdpa, timed alternately on the same patches and weights; and the errors of
their outputs. memory: the plan of `inspect --plan` for this device with a share of its memory, the
measured peak of as many batches as a pass has in flight, and whether twice the batch fits.
statistics: summing a batch's rows on the device, against copying them to the host and summing them
there. Each part runs in a process of its own, since JAX keeps its memory until the process ends;
rows are saved one by one. See also benchmarks/scale/accelerator_runs.py.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx
from jax import Array
from transformers import AutoModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from benchmarks.harness import clocked, command, ratio, write
from benchmarks.markdown import caption, refuse_equal, table_of
from benchmarks.scale.compiled import TOWERS
from benchmarks.scale.compiled import tower as tower_config
from benchmarks.speed.synthetic_rows import PRESERVE, Source
from benchmarks.speed.tower import equal, in_turns, machine, mixed, pack_batch
from jax_unlearn.data.batches import Batch
from jax_unlearn.features.device_gram import DeviceGram
from jax_unlearn.features.tower_pass import place_tower, tap_rows
from jax_unlearn.models.attention import Kernel, best_kernel
from jax_unlearn.models.qwen3_vision.config import VisionConfig
from jax_unlearn.models.qwen3_vision.packing import PackedPatches
from jax_unlearn.models.qwen3_vision.tower import Qwen3VisionTower
from jax_unlearn.runs.inspect.accelerators import SHARE_VARIABLES, Chips
from jax_unlearn.runs.inspect.memory_plan import ROW, batch_on, flops, plan
from jax_unlearn.runtime.mesh import make_mesh, over_data
from jax_unlearn.runtime.xla_flags import make_reproducible
from porting import load_vision_tower
from porting.qwen3_vision import abstract_tower

# Patches of a batch, and the sides (in patches) of mixed images, half a megapixel on average.
PATCHES = 32768
SIDES = range(24, 66, 2)
SQUARE = 64
# D_in of the last Linears of the towers' Mergers.
WIDTHS = (4096, 4608)
# The compiler's defaults, which `xla_flags` changes: kernels of products are autotuned.
MEASURED = {
    "xla_gpu_deterministic_ops": False,
    "xla_gpu_autotune_level": 4,
    "xla_gpu_enable_triton_gemm": True,
}
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}


def main() -> None:
    parser = command("accelerator", __doc__, rounds=10)
    add = parser.add_argument
    add("--parts", nargs="+", choices=[*PARTS], default=[*PARTS])
    add("--seconds", type=int, default=300, help="a part that takes longer is stopped")
    add("--towers", nargs="+", choices=[*TOWERS], default=[*TOWERS])
    add("--memory-share", type=float, default=0.25, help="of the device, in part memory")
    add("--here", choices=[*PARTS], help="run this part in this process")
    options = parser.parse_args()
    if options.here:
        run_part(options)
        return
    for part in options.parts:
        program = [sys.executable, "-m", "benchmarks.scale.accelerator", *sys.argv[1:]]
        try:
            subprocess.run([*program, "--here", part], check=True, timeout=options.seconds)
        except subprocess.TimeoutExpired:
            print(f"{part}: stopped after {options.seconds} s", flush=True)


def run_part(options: argparse.Namespace) -> None:
    """Run a part in this process; its rows replace earlier ones in the results file."""
    make_reproducible()
    rows = []
    for row in PARTS[options.here](options):
        rows.append(row)
        print(options.here, json.dumps(row), flush=True)
        results = json.loads(options.out.read_text()) if options.out.exists() else {}
        results[options.here] = {"machine": machine(), "rows": rows}
        write(options.out, results)


def tower(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Speed and errors of the tower, next to PyTorch, which needs memory of the device too."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    for name in options.towers:
        with TemporaryDirectory() as folder:
            save_tower(name, Path(folder))
            for images in ("equal", "mixed"):
                facts = {"tower": name, "images": images}
                yield {**facts, **compare(folder, images, options.rounds)}
            yield {"tower": name, "relative_error": errors(folder)}


def shape(name: str) -> dict[str, Any]:
    depth, hidden, inner, heads, out = TOWERS[name]
    return {
        "depth": depth,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_heads": heads,
        "out_hidden_size": out,
        "deepstack_visual_indexes": [5, 11, 17],
    }


def save_tower(name: str, folder: Path) -> None:
    """Write a checkpoint of this tower only, with random weights."""
    torch.manual_seed(0)
    Qwen3VLVisionModel(Qwen3VLVisionConfig(**shape(name))).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))


def compare(folder: str, images: str, rounds: int) -> dict[str, Any]:
    """Speed of both towers in bfloat16 on one batch."""
    theirs = AutoModel.from_pretrained(folder, dtype="bfloat16").eval().cuda()
    ours = load_vision_tower(folder, "bfloat16")
    config = ours.config
    spare = config.padding_for_shape
    grid, batch = equal(PATCHES, SQUARE) if images == "equal" else mixed(PATCHES, SIDES, spare)
    pixels = random_pixels(config, grid)
    there = torch.from_numpy(pixels).cuda().to(theirs.dtype), torch.from_numpy(grid).cuda()

    def run_torch() -> None:
        with torch.inference_mode():
            theirs(*there)
        torch.cuda.synchronize()

    best = best_kernel(jax.default_backend())
    runs = {
        best: program(ours, best, pixels, grid, batch),
        f"{best}, measured": program(ours, best, pixels, grid, batch, MEASURED),
        "xla": program(ours, "xla", pixels, grid, batch),
    }
    first = {kernel: clocked(run)[0] for kernel, run in runs.items()}
    seconds = in_turns({"torch": run_torch, **runs}, rounds)
    return {
        "n_images": len(grid),
        "patches": batch.patches,
        "padding": 1 - batch.patches / (batch.rows * batch.length),
        "images_per_second": {k: len(grid) / median(v) for k, v in seconds.items()},
        "tflops": {k: work(config, grid) / median(v) / 1e12 for k, v in seconds.items()},
        "ratio": {k: ratio(seconds["torch"], seconds[k]) for k in runs},
        "compile_seconds": {k: first[k] - median(seconds[k]) for k in runs},
    }


def random_pixels(config: VisionConfig, grid: np.ndarray) -> np.ndarray:
    size = (int(grid.prod(axis=1).sum()), config.patch_dim)
    return np.random.default_rng(0).standard_normal(size, np.float32)


def errors(folder: str) -> dict[str, float]:
    """Relative errors ‖out − right‖ / ‖right‖ of the Merger's output; right: PyTorch in float32."""
    grid = np.array([[1, SQUARE, SQUARE], [1, 30, 44]])
    outs, exact = {}, "torch float32"
    for dtype in ("float32", "bfloat16"):
        ours = load_vision_tower(folder, dtype)
        pixels = random_pixels(ours.config, grid)
        theirs = AutoModel.from_pretrained(folder, dtype=dtype).eval().cuda()
        there = torch.from_numpy(pixels).cuda().to(theirs.dtype), torch.from_numpy(grid).cuda()
        with torch.inference_mode():
            outs[f"torch {dtype}"] = theirs(*there).pooler_output.float().cpu().numpy()
        outs[f"jax {dtype}"] = np.asarray(ours(pixels, grid).pooler_output, np.float32)
    right = outs.pop(exact)
    return {name: error_of(out, right) for name, out in outs.items()}


def work(config: VisionConfig, grid: np.ndarray) -> int:
    return sum(flops(config, int(patches)) for patches in grid.prod(axis=1))


def program(
    ours: Qwen3VisionTower,
    kernel: Kernel,
    pixels: np.ndarray,
    grid: np.ndarray,
    batch: Batch,
    options: dict[str, Any] | None = None,
) -> Callable[[], Any]:
    """A function that runs `tower_pass.tap_rows` on a batch that is already on the device."""
    mesh, config = make_mesh("data=1"), replace(ours.config, attention=kernel)
    graphdef, _ = nnx.split(abstract_tower(config))
    state = place_tower(nnx.split(ours)[1], mesh)
    packed, _ = pack_batch(config, pixels, grid, batch)
    placed = jax.device_put(packed, over_data(mesh))
    names = tuple(f"{merger}.linear_fc2" for merger in config.mergers)
    run = jax.jit(tap_rows.function, static_argnums=(0, 3, 4), compiler_options=options)
    return lambda: jax.block_until_ready(run(graphdef, state, placed, names, mesh))


def memory(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The planned and the measured memory of a pass, in MiB."""
    os.environ[SHARE_VARIABLES[0]] = str(options.memory_share)
    limit = int(jax.local_devices()[0].memory_stats()["bytes_limit"])
    chips = Chips("here", make_mesh("data=1"), limit, best_kernel(jax.default_backend()))
    for name in options.towers:
        config = tower_config(name, chips.kernel)
        found = plan(config, chips)
        patches, parts = (
            found[key] for key in ("largest batch of a device in patches", "its memory in MiB")
        )
        row = {"tower": name, "limit": limit / 2**20, "patches": patches, "planned": parts}
        row |= {"planned_sum": sum(parts.values())}
        row |= {"peak": peak(config, chips, patches // ROW) / 2**20}
        try:
            row["peak_of_twice"] = peak(config, chips, 2 * patches // ROW) / 2**20
        except jax.errors.JaxRuntimeError as refused:
            if "RESOURCE_EXHAUSTED" not in str(refused):
                raise
            row["twice"] = str(refused).splitlines()[0][:200]
        yield row


def peak(config: VisionConfig, chips: Chips, rows: int) -> int:
    """Peak memory of the device after a few batches, as in a pass with --granularity tokens."""
    made = Qwen3VisionTower(config, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(made)
    state, place = place_tower(state, chips.mesh), over_data(chips.mesh)
    names = tuple(f"{merger}.linear_fc2" for merger in config.mergers)
    grams = {name: DeviceGram(config.merged_size, chips.mesh) for name in names}
    arrays = [np.zeros(x.shape, x.dtype) for x in batch_on(config, chips, rows, ROW)]
    arrays[0] += np.random.default_rng(0).normal(size=arrays[0].shape[2:]).astype(np.float32)
    arrays[-1] += ROW
    before: dict[str, Array] = {}
    for _ in range(3):
        placed = jax.device_put(PackedPatches(*arrays), place)
        taps = tap_rows(graphdef, state, placed, names, chips.mesh)
        for name, x in before.items():
            grams[name].add(x, np.ones(len(x), bool))
        before = taps
        # Releases the batch, while the tower may still be computing it.
        del placed
    jax.block_until_ready(before)
    return int(jax.local_devices()[0].memory_stats()["peak_bytes_in_use"])


def statistics(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds to sum a batch of rows at one tap, and the relative error of the Gram matrix."""
    rows, mesh = PATCHES // 4, make_mesh("data=1")
    for d_in in WIDTHS:
        placed = jax.device_put(Source(d_in, 8).rows(PRESERVE, rows), over_data(mesh))
        mask = jax.device_put(np.ones(rows, bool), over_data(mesh))
        gram = DeviceGram(d_in, mesh)

        def on_device(gram: DeviceGram = gram, placed: Array = placed, mask: Array = mask) -> None:
            gram.add(placed, mask)
            jax.block_until_ready(gram.sums)

        def on_host(placed: Array = placed) -> Any:
            # A copy, because JAX caches an array's host copy.
            wide = np.asarray(placed + 0).astype(np.float64)
            return wide.T @ wide

        seconds = in_turns({"host": on_host, "device": on_device}, options.rounds)
        found, right = gram.finish().gram, (options.rounds + 1) * on_host()
        yield {
            "d_in": d_in,
            "rows": rows,
            "seconds": {name: median(times) for name, times in seconds.items()},
            **ratio(seconds["host"], seconds["device"]),
            "relative_error": error_of(found, right),
        }


def error_of(found: Any, right: np.ndarray) -> float:
    """‖found − right‖ / ‖right‖."""
    return float(np.linalg.norm(found - right) / np.linalg.norm(right))


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "tower": tower,
    "memory": memory,
    "statistics": statistics,
}


def table(results: dict[str, Any]) -> str:
    """The programs of a pass on a real device, as far as they were measured."""
    blocks = [caption(next(iter(results.values()))["machine"], "scale.accelerator")]
    if "tower" in results:
        measured = [row for row in results["tower"]["rows"] if "images" in row]
        rows = [line for row in measured for line in kernel_rows(row)]
        header = ["batch in bfloat16", "images/s", "TFLOP/s", "ratio, median"]
        blocks.append(table_of(header, rows))
    notes = [
        f"Of {row['limit']:,.0f} MiB the plan for {row['tower'].replace('x', ' × ')} took "
        f"{row['planned_sum']:,.0f} with batches of {row['patches']:,} patches, the device "
        f"{row['peak']:,.0f}; a batch of twice as many "
        + ("did not fit, as planned." if "twice" in row else "fitted, unlike planned.")
        for row in results.get("memory", {}).get("rows", [])
    ]
    notes += [
        f"{row['rows']:,} rows of {row['d_in']} were added up in "
        f"{1000 * row['seconds']['device']:.0f} ms on the device and "
        f"{1000 * row['seconds']['host']:.0f} ms on the host ({row['ratio']:.0f} ×), to "
        f"{row['relative_error']:.0e} of the Gram matrix."
        for row in results.get("statistics", {}).get("rows", [])
    ]
    return "\n\n".join([*blocks, " ".join(notes)] if notes else blocks)


def kernel_rows(row: dict[str, Any]) -> list[list[str]]:
    """Rows of a batch with Hugging Face's tower, and with ours and each attention kernel."""
    size = "of a megapixel" if row["images"] == "equal" else "of all sizes"
    name = f"{row['tower'].replace('x', ' × ')}, {row['n_images']} images {size}"
    speeds = row["images_per_second"]
    refuse_equal(name, [(kernel, {"images": speed}) for kernel, speed in speeds.items()])
    lines = []
    for kernel, speed in speeds.items():
        ours = kernel in row["ratio"]
        ratio = f"**{row['ratio'][kernel]['ratio']:.2f} ×**" if ours else "1"
        label = kernel if ours else "Hugging Face, PyTorch, sdpa"
        lines.append([f"{name}: {label}", f"{speed:.1f}", f"{row['tflops'][kernel]:.0f}", ratio])
    return lines


if __name__ == "__main__":
    main()
