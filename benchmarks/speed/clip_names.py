"""1,000 names through a text encoder of ViT-B/32's size, beside transformers with `padding=True`.

Each name in two prompts, of random weights, in batches of 64. Each side runs in a process of its
own on all cores, and the processes alternate; tokenising is part of the time. The programs are
compiled, and PyTorch is warmed up, before the clock starts. Other programs on the cores slow the
two sides down by different amounts, since PyTorch's threads wait in busy loops; so a fifth of the
names is also encoded on one core, by the CPU seconds of the process, which do not depend on them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.harness import clocked, command, ratio, write
from benchmarks.markdown import caption, shown, table_of, times
from jax_unlearn.runtime.assets import CLIP_ASSETS

TEMPLATES = ("{}", "a photo of a {}.")
TEXT = {"num_hidden_layers": 12, "hidden_size": 512, "num_attention_heads": 8}
BATCH = 64
SIDES = ("transformers", "jax_unlearn")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = command("clip_names_speed", __doc__, rounds=3)
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=TEXT["num_hidden_layers"])
    parser.add_argument("--side", choices=SIDES, help="the work of one process")
    parser.add_argument("--folder", type=Path, help="where that process finds the model")
    options = parser.parse_args(arguments)
    if options.side:
        WORK[options.side](options.folder, prompts(options.names))
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder, options.layers)
        found: dict[str, list[Any]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side, rounds in found.items():
                rounds.append(one_process(folder, side, options.names))
        theirs, ours = (np.load(folder / f"{side}.npy") for side in SIDES)
        alone = on_one_core(folder, options.names // 5, options.rounds)
    from benchmarks.speed.tower import machine

    seconds = {side: [one["seconds"] for one in rounds] for side, rounds in found.items()}
    results = {
        "machine": machine(),
        "names": options.names,
        "prompts": len(prompts(options.names)),
        "seconds": {side: median(rounds) for side, rounds in seconds.items()},
        "rounds": seconds,
        **ratio(seconds[SIDES[0]], seconds[SIDES[1]]),
        "one_core": alone,
        "compile_seconds": median(one["warm_up"] for one in found[SIDES[1]]),
        "programs": found[SIDES[1]][0]["programs"],
        "relative_error": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
    }
    print(json.dumps(results, indent=1))
    write(options.out, results)


def on_one_core(folder: Path, names: int, rounds: int) -> dict[str, Any]:
    """CPU seconds of both sides on the same core, in turns, and their ratio."""
    core = {min(os.sched_getaffinity(0))}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, found in seconds.items():
            found.append(one_process(folder, side, names, core)["cpu_seconds"])
    medians = {side: median(found) for side, found in seconds.items()}
    of_ratio = ratio(seconds[SIDES[0]], seconds[SIDES[1]])
    return {"names": names, "cpu_seconds": medians, "rounds": seconds, **of_ratio}


def one_process(folder: Path, side: str, names: int, cores: set[int] | None = None) -> Any:
    """What a side has measured, in a process of its own; `cores` are those that it may use."""
    words = ["--side", side, "--folder", str(folder), "--names", str(names)]
    # A compiled program of an earlier round would not be compiled again.
    env = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.clip_names", *words],
        check=True,
        stdout=subprocess.PIPE,
        env=env,
        preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
    )
    return json.loads(done.stdout.splitlines()[-1])


def prompts(names: int) -> list[str]:
    """Every name in both templates: the bundled names, of which two together make a new one."""
    bundled = sorted(path.name for path in (CLIP_ASSETS / "images" / "test").iterdir())
    made = [*bundled, *(f"{a} and {b}" for a, b in product(bundled, bundled) if a != b)]
    chosen = [made[i] for i in np.linspace(0, len(made) - 1, names).astype(int)]
    return [template.replace("{}", name) for template in TEMPLATES for name in chosen]


def make_model(folder: Path, layers: int) -> None:
    """Save a text encoder with random weights, and the bundled tokenizer."""
    import torch
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = AutoTokenizer.from_pretrained(CLIP_ASSETS / "checkpoint")
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    config = CLIPTextConfig(**TEXT | {"num_hidden_layers": layers} | ends)
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def work_of_transformers(folder: Path, texts: Sequence[str]) -> None:
    import torch
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                tokens = tokenizer(list(batch), padding=True, return_tensors="pt")
                rows.append(model(**tokens).text_embeds.numpy())
        return np.concatenate(rows)

    warm_up, _ = clocked(lambda: encode(texts[:BATCH]))
    begun = time.process_time()
    seconds, found = clocked(lambda: encode(texts))
    spent = time.process_time() - begun
    np.save(folder / f"{SIDES[0]}.npy", found)
    print(json.dumps({"seconds": seconds, "cpu_seconds": spent, "warm_up": warm_up}))


def work_of_ours(folder: Path, texts: Sequence[str]) -> None:
    from rich.console import Console

    from jax_unlearn.features.clip_encoder import TEXT as PROJECTION
    from jax_unlearn.models.clip.model import text_forward
    from jax_unlearn.runs.sources.open_encoder import open_clip_encoder

    encoder = open_clip_encoder(folder, "float32", Console(quiet=True))
    # One text of each length, so that every program is compiled.
    each = dict(zip(encoder.lengths(texts), texts, strict=True))
    by_places = {encoder.tokens([text])[0].shape[1]: text for text in each.values()}
    warm_up, _ = clocked(lambda: [encoder.text_taps([text]) for text in by_places.values()])
    projection = encoder.projection(PROJECTION)
    begun = time.process_time()
    seconds, found = clocked(lambda: projection.output(encoder.text_taps(texts)))
    spent, programs = time.process_time() - begun, text_forward.compilations()
    np.save(folder / f"{SIDES[1]}.npy", found)
    facts = {"seconds": seconds, "cpu_seconds": spent, "warm_up": warm_up, "programs": programs}
    print(json.dumps(facts))


WORK: dict[str, Callable[[Path, Sequence[str]], None]] = dict(
    zip(SIDES, (work_of_transformers, work_of_ours), strict=True)
)


def table(results: dict[str, Any]) -> str:
    """Seconds of both sides, their ratio, and what is left out of them."""
    alone = results["one_core"]
    header = ["names, on", "transformers, s", "ours, s", "ratio (range)"]
    rows = [
        [f"{results['names']:,}, all cores", *cells(results["seconds"], results)],
        [f"{alone['names']:,}, CPU seconds on one core", *cells(alone["cpu_seconds"], alone)],
    ]
    compiling = f"{results['programs']} programs took {results['compile_seconds']:.1f} s"
    return (
        f"{caption(results['machine'], 'speed.clip_names')}\n\n{table_of(header, rows)}\n\n"
        f"Compiling {compiling}, a batch of each included. The embeddings differ by "
        f"{results['relative_error']:.0e} of their norm."
    )


def cells(seconds: dict[str, float], ratios: dict[str, Any]) -> list[str]:
    low, high = min(ratios["ratios"]), max(ratios["ratios"])
    shown_ratio = f"**{times(ratios['ratio'])}** ({shown(low)}–{shown(high)})"
    return [*(f"{seconds[side]:.1f}" for side in SIDES), shown_ratio]


if __name__ == "__main__":
    main()
