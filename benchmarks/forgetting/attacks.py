"""The attack suite on four ways to forget one concept, with all controls.

More drawings are made than are shipped (`shipped.qwen3_vl.generated`), so that the target stand_in
has enough to match, and attackers have images of their own.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.forgetting.stand_in import STAND_IN, near_to, with_photos
from benchmarks.forgetting.stand_in import Options as Drawings
from benchmarks.forgetting.stand_in import draw as draw_images
from benchmarks.forgetting.targets import machine
from benchmarks.markdown import caption, table_of
from jax_unlearn.attacks import relearning
from jax_unlearn.attacks.edited_model import EditedModel
from jax_unlearn.evaluate.vlm.model import load_vlm
from jax_unlearn.runs.attack import AttackOptions, attack, attacked_run
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.pipeline import run
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig, read_config
from jax_unlearn.runs.settings.presets import Preset
from jax_unlearn.runtime.assets import ASSETS

RESULTS = Path(__file__).parents[1] / "results" / "attacks.json"
COMMAND = "forgetting.attacks"
# Preset and settings of each way to forget.
WAYS: dict[str, tuple[Preset, dict[str, Any]]] = {
    "near": ("default", {}),
    "stand_in": ("default", STAND_IN),
    "LEACE": ("default", {"optimizer": "leace"}),
    "faithful": ("faithful", {}),
}
# Attacks in the order of the table, with a title.
TITLES = {
    "readers": "readers",
    "membership": "membership",
    "image_changes": "changed images",
    "quantisation": "quantisation",
    "survival": "survival",
    "in_context": "examples in the prompt",
    "universal_perturbation": "universal perturbation",
    "soft_prompt": "soft prompt",
    "relearning": "relearning, language model",
    "relearning_merger": "relearning, edited Linears",
}
EDITED, NEVER = "edited", "class never trained"


@dataclass
class Options:
    """The concept and numbers; the defaults are those of the tables."""

    concept: str = "triangle"
    train: int = 600
    """Drawings of the concept, and of its counterpart, that the edit is fitted on."""
    held_out: int = 300
    """Held-out drawings of each: half for attackers, half to test."""
    seeds: int = 3
    never_saw: Path | None = None
    """Checkpoint of a model trained without the concept
    (`python -m benchmarks.shipped.qwen3_vl --without CONCEPT --out CHECKPOINT`): the same
    fine-tuning teaches it the concept, which no edit can make harder than."""
    out: Path = RESULTS


def config_for(way: str, folder: Path, concept: str, other: str, out: Path) -> RunConfig:
    """The run of a way to forget, on generated drawings and the shipped photographs."""
    preset, settings = WAYS[way]
    chosen = {"stand_in": other, **settings} if way == "stand_in" else settings
    return demo_config(Demo(concept=concept, preset=preset)).replace(
        forget=folder / "train",
        preserve=folder / "train",
        forget_held_out=folder / "test",
        preserve_held_out=folder / "test",
        questions=ASSETS / "questions.json",
        out=out,
        **chosen,
    )


def measure(way: str, folder: Path, options: Options, other: str, console: Console) -> Metrics:
    """A run and its attacks."""
    out = folder / way
    metrics = run(config_for(way, folder, options.concept, other, out), Console(quiet=True))
    found = attack(AttackOptions(out, seeds=options.seeds), console)
    rows = {name: one["rows"] for name, one in found["attacks"].items()}
    return {
        "way": way,
        "rank": metrics["adapter"]["rank"],
        "linears": metrics["adapter"]["targets"],
        "images": found["images"],
        "strongest": {name: one["strongest"] for name, one in found["attacks"].items()},
        "says_nothing": {name: one["says_nothing"] for name, one in found["attacks"].items()},
        "left_out": {name: one["left_out"] for name, one in found["attacks"].items()},
        "seconds": {name: one["seconds"] for name, one in found["attacks"].items()},
        "few_shot": few_shot(rows["readers"]),
        "relearning": {name: curves(rows[name]) for name in ("relearning", "relearning_merger")},
    }


def reference(checkpoint: Path, run_dir: Path, options: Options) -> Metrics:
    """Relearning on a model that never saw the concept, with the images of a run's attackers."""
    attacked = attacked_run(
        AttackOptions(run_dir, seeds=options.seeds), read_config(run_dir), Console(quiet=True)
    )
    attacked.model = EditedModel(load_vlm(checkpoint), {}, {})
    rows = [
        {"subject": EDITED, "setting": dict(trial.setting), "seed": trial.seed, **row}
        for trial in relearning.trials(attacked)
        if trial.subject == EDITED
        for row in trial.measure()
    ]
    return {"curves": curves(rows)[EDITED]}


def few_shot(rows: list[Metrics]) -> dict[str, dict[str, float]]:
    """Mean score of the best of four readers of mean embeddings, by subject and labelled images."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["pool"] == "mean" and row["reader"] == "best of four":
            by_shots = found.setdefault(row["subject"], {})
            by_shots.setdefault(str(row["labelled"]), []).append(row["balanced"])
    return {
        who: {k: float(np.mean(scores)) for k, scores in curve.items()}
        for who, curve in found.items()
    }


def curves(rows: list[Metrics]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """[TPR, FPR], averaged over seeds, by subject, number of images and of steps."""
    found: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
    for row in rows:
        own = found.setdefault(row["subject"], {}).setdefault(str(row["setting"]["images"]), {})
        both = [row["true_positive_rate"], row["false_positive_rate"]]
        own.setdefault(str(row["steps"]), []).append(both)
    return {
        who: {n: {k: np.mean(v, axis=0).tolist() for k, v in by.items()} for n, by in own.items()}
        for who, own in found.items()
    }


def plot(results: Metrics, path: Path) -> None:
    """The few-shot curves beside the relearning curves."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    counts = [*results["rows"][0]["relearning"]["relearning"][EDITED]]
    axes = figure.subplots(1, 1 + len(counts))
    for row in results["rows"]:
        curve = row["few_shot"][EDITED]
        axes[0].plot([*map(int, curve)], [*curve.values()], marker=".", label=row["way"])
        for axis, count in zip(axes[1:], counts, strict=True):
            steps = row["relearning"]["relearning"][EDITED][count]
            gained = [true - false for true, false in steps.values()]
            axis.plot([*map(int, steps)], gained, marker=".", label=row["way"])
    first = results["rows"][0]
    untrained = first["few_shot"]["untrained tower"]
    axes[0].plot([*map(int, untrained)], [*untrained.values()], "k--", lw=1, label="untrained")
    axes[0].axhline(0.5, color="gray", lw=1, ls=":")
    axes[0].set(xscale="log", xlabel="labelled images of each", ylabel="balanced accuracy")
    axes[0].set_title("few-shot readers")
    for axis, count in zip(axes[1:], counts, strict=True):
        never = first["relearning"]["relearning"][NEVER][count]
        gained = [true - false for true, false in never.values()]
        axis.plot([*map(int, never)], gained, "k--", lw=1, label="never trained (near)")
        if "never_saw" in results:
            curve = results["never_saw"]["curves"][count]
            gained = [true - false for true, false in curve.values()]
            axis.plot([*map(int, curve)], gained, "k:", lw=1.5, label="trained without it")
        axis.axhline(0, color="gray", lw=1, ls=":")
        axis.set(xlabel="steps", ylabel="TPR − FPR", title=f"relearning from {count} images")
    axes[0].legend(frameon=False, fontsize=7)
    axes[1].legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=130)


def table(results: Metrics) -> str:
    """Attacks × ways to forget: the strongest setting, and each control of it."""
    header = ["attack", "way to forget", "where it gains most", "edited", "others", "controls"]
    lines = []
    for name, title in TITLES.items():
        for row in results["rows"]:
            best = row["strongest"][name]
            if best is None:
                lines.append([title, row["way"], "no setting says anything", "", "", ""])
                continue
            others = best["edited"].get("others")
            lines.append(
                [
                    title,
                    row["way"],
                    ", ".join(
                        f"{key.replace('_', ' ')} {value}"
                        for key, value in best["setting"].items()
                        if key not in ("concept", "counterpart")
                    ),
                    rates(best["edited"]),
                    "" if others is None else f"{100 * others:.1f}",
                    "; ".join(f"{who} {rates(found)}" for who, found in best["controls"].items()),
                ]
            )
    images = results["rows"][0]["images"]
    about = (
        f"{results['concept']} → {results['counterpart']}; the edit is fitted on "
        f"{results['train']} drawings of each, attackers on up to "
        f"{images['fitted']['forget']} others of each, and {images['tested']['forget']} others of "
        f"each are tested; {results['seeds']} seeds."
    )
    return "\n\n".join([caption(results["machine"], COMMAND), about, table_of(header, lines)])


def rates(row: Metrics) -> str:
    """TPR / FPR in per cent, or a balanced accuracy or AUC."""
    for key, text in (("balanced", "accuracy"), ("auc", "AUC")):
        if key in row:
            return f"{text} {100 * row[key]:.1f}"
    return f"{100 * row['true_positive_rate']:.1f} / {100 * row['false_positive_rate']:.1f}"


def relearning_table(results: Metrics) -> str:
    """TPR / FPR after each number of steps, beside the controls."""
    sections = [caption(results["machine"], COMMAND)]
    for name in ("relearning", "relearning_merger"):
        first = results["rows"][0]["relearning"][name][EDITED]
        for count, steps in first.items():
            header = ["way to forget", "subject", *(f"{k} steps" for k in steps)]
            lines = []
            for row in results["rows"]:
                for who, by_count in row["relearning"][name].items():
                    curve = by_count[count]
                    lines.append([row["way"], who, *by_steps(curve, steps)])
            if name == "relearning" and "never_saw" in results:
                curve = results["never_saw"]["curves"][count]
                name_of = "*a model trained without the concept*"
                lines.append([name_of, "", *by_steps(curve, steps)])
            title = f"### {TITLES[name]}, {count} images"
            sections += [title, table_of(header, lines)]
    return "\n\n".join(sections)


def by_steps(curve: Metrics, steps: Iterable[str]) -> list[str]:
    """TPR / FPR in per cent at each number of steps; – where training had ended before."""
    return [
        f"{100 * curve[k][0]:.0f} / {100 * curve[k][1]:.0f}" if k in curve else "–" for k in steps
    ]


def main() -> None:
    options = tyro.cli(Options)
    console = Console(stderr=True)
    other = near_to(options.concept)[0]
    results: Metrics = {
        "machine": machine(),
        "concept": options.concept,
        "counterpart": other,
        "train": options.train,
        "seeds": options.seeds,
        "rows": [],
    }
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawings = Drawings(held_out=options.held_out)
        draw_images(folder, options.concept, other, drawings, 0, options.train)
        with_photos(folder)
        for way in WAYS:
            results["rows"].append(measure(way, folder, options, other, console))
            options.out.write_text(json.dumps(results, indent=1) + "\n")
        if options.never_saw:
            results["never_saw"] = reference(options.never_saw, folder / "near", options)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    plot(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
