"""Zero-shot accuracy of the shipped CLIP after each preset: the table of names.

The 24 easy-VQA classes are one data set, the named drawings another. Names of one data set are
forgotten or preserved; the images of both are classified, each among its own names, with the
held-out template.
"""

import argparse
import itertools
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.forgetting.targets import machine
from benchmarks.markdown import caption, over_seeds, refuse_equal, table_of
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.runs.fit_adapter import fit_adapter
from jax_unlearn.runs.settings.presets import Preset, start_settings
from jax_unlearn.runs.sources.clip_names import ClipNames
from jax_unlearn.runtime.assets import CLIP_ASSETS

RESULTS = Path(__file__).parents[1] / "results" / "clip_forgetting.json"
SHAPES = ("circle", "rectangle", "triangle")
CONCEPTS = (
    ("red triangle",),
    ("teal circle",),
    ("cat",),
    ("airplane",),
    ("guitar",),
    ("strawberry",),
    ("cat", "airplane", "guitar"),
)
PRESETS: tuple[Preset, ...] = ("faithful", "default")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        data = split(Path(folder))
        for names, preset in itertools.product(CONCEPTS, PRESETS):
            for seed in options.seeds:
                rows.append(measure(names, preset, seed, data, console))
                console.print(json.dumps(rows[-1]), soft_wrap=True)
    options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def split(folder: Path) -> dict[str, Path]:
    """Create the two data sets as folders of links."""
    data = {name: folder / name for name in ("easy-VQA", "drawings")}
    for path in data.values():
        path.mkdir()
    for source in sorted((CLIP_ASSETS / "images" / "test").iterdir()):
        kind = "easy-VQA" if source.name.endswith(SHAPES) else "drawings"
        (data[kind] / source.name).mkdir()
        for image in source.iterdir():
            (data[kind] / source.name / image.name).symlink_to(image)
    return data


def measure(
    names: tuple[str, ...], preset: Preset, seed: int, data: dict[str, Path], console: Console
) -> dict[str, Any]:
    kind = next(k for k, path in data.items() if (path / names[0]).is_dir())
    kept = sorted(p.name for p in data[kind].iterdir() if p.name not in names)
    checkpoint = CLIP_ASSETS / "checkpoint"
    config = start_settings(preset, checkpoint=checkpoint, forget_text=names).replace(
        preserve_text=tuple(kept),
        images=data[kind],
        other_images=tuple(path for k, path in data.items() if k != kind),
        seed=seed,
    )
    extracted = ClipNames(config, console).extract()
    found = fit_adapter(extracted, config, Console(quiet=True)).found
    zero_shot = judge_of(extracted, config.samples).evaluate(found.result.adapter)["zero_shot"]
    (other,) = zero_shot["other_data"].values()
    return {
        "forget": list(names),
        "data": kind,
        "preset": preset,
        "seed": seed,
        "linears": sorted(found.result.adapter.pairs),
        "rank": found.result.adapter.rank,
        "trials": found.trials,
        "lambda_forget": found.lambda_forget,
        "fall": found.fall,
        "seconds": found.result.seconds["total"],
        **{key: zero_shot[key] for key in ("before", "after", "classes")},
        "other_data": other,
    }


MEASURED = ("before", "after", "classes", "other_data", "fall", "trials", "lambda_forget")


def table(results: dict[str, Any]) -> str:
    """Zero-shot accuracy of the shipped CLIP before and after, one row per name and preset."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault(f"{', '.join(row['forget'])}, {row['preset']}", []).append(row)
    keys = (*MEASURED, "equal_because")
    measured = [
        (name, {key: row[key] for key in keys if key in row})
        for name, group in groups.items()
        for row in group
    ]
    refuse_equal("clip", measured)
    rows = []
    for name, group in groups.items():
        shares = [
            f"{over_seeds([group[0]['before'][key]])} → "
            f"{over_seeds(row['after'][key] for row in group)}"
            for key in ("forget", "others", "neighbours")
        ]
        data = [row["other_data"] for row in group]
        shares.append(f"{over_seeds([data[0]['before']])} → {over_seeds(d['after'] for d in data)}")
        rows.append([name, *shares])
    header = ["forgotten, preset", "forgotten names", "other names", "near neighbours"]
    made = caption(results["machine"], "forgetting.clip_names")
    return f"{made}\n\n{table_of([*header, 'other data'], rows)}"


if __name__ == "__main__":
    main()
