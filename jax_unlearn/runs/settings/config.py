"""Every setting of a run, in one dataclass; the command line is generated from it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jax_unlearn.data.batches import PATCHES
from jax_unlearn.features.streaming import Granularity
from jax_unlearn.objective.loss import Reduction
from jax_unlearn.objective.targets import TargetKind
from jax_unlearn.runs.settings.presets import Preset
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.config import SolverConfig

# Settings that do not change what comes out.
HOW_IT_RUNS = {
    "out",
    "overwrite",
    "mesh",
    "workers",
    "resume",
    "save_seconds",
    "save_steps",
    "distributed",
    "coordinator",
    "process_id",
    "processes",
    "heartbeat_seconds",
}


LinearName = Literal["linear_fc1", "linear_fc2"]
Optimizer = Literal["closed_form", "adam", "leace"]


@dataclass(frozen=True, kw_only=True)
class RunConfig(SolverConfig):
    """What a run needs. Written as config.json into the run's directory."""

    checkpoint: Path
    """Directory of a checkpoint of the Qwen3-VL, Qwen3-Omni or Qwen3.5 family, or of CLIP."""
    forget: Path | None = None
    """Folder of images to forget; sub-folders are classes."""
    preserve: Path | None = None
    """Folder of images to keep; sub-folders are classes."""
    forget_text: tuple[str, ...] = ()
    """CLIP: names to forget, or a .txt file with one a line; the text side is adapted."""
    preserve_text: tuple[str, ...] = ()
    """CLIP: names to keep, or a .txt file with one a line."""
    train_templates: tuple[str, ...] = ("{}",)
    """CLIP: prompts that a name is trained in; {} is where the name goes."""
    template: str = "a photo of a {}."
    """CLIP: the prompt that a name is judged in."""
    images: Path | None = None
    """CLIP's text side: folder of images, sub-folders named like the names, to be classified before
    and after."""
    other_images: tuple[Path, ...] = ()
    """CLIP's text side: folders of other data sets, each classified among its own sub-folders."""
    until_forgotten: float | None = None
    """Train again with --lambda-forget larger by 0.05 until the forget norm has fallen by this
    share, at most 100 times."""
    out: Path
    """Directory of the run, made here."""
    forget_held_out: Path | None = None
    """Images to test forgetting with; by default a seeded fifth of each class of --forget."""
    preserve_held_out: Path | None = None
    """Images to test keeping with; by default a seeded fifth of each class of --preserve."""
    concept: str | None = None
    """Forget the classes whose name holds all these words and keep the others, so that --forget and
    --preserve may be one folder."""
    preset: Preset = "default"
    """Settings to start from: what we measured to work, or the published scheme: for images main
    Merger only, random unit targets, tokens, sums; for names CLIP's, with its faults (the last
    epoch is kept). clip-rn50, clip-vit-b16 and clip-multi are its constants without them. For
    names the default is --target blank and --lambda-preserve 1. Options given beside it win."""
    targets: tuple[str, ...] = ("all",)
    """Which Mergers to adapt: all, or any of merger (the main one), deepstack_merger_list.0, …;
    with CLIP text_projection for names, visual_projection for images."""
    linears: tuple[LinearName, ...] = ("linear_fc2",)
    """Which Linears of those Mergers. With linear_fc1 every step runs the rest of the Merger on all
    tokens, which costs many times the memory and the time."""
    optimizer: Optimizer | None = None
    """closed_form computes the adapter, adam trains it; leace is another thing: it erases what a
    linear probe can read, by a change of rank 1 and of the bias, whatever λ, target and rank are.
    By default closed_form, and adam where linear_fc1 is adapted."""
    target: TargetKind = "near"
    """Where forget rows are sent."""
    near_step: float = 1.5
    """With --target near: how far to go, 1 ending at the most similar preserve images. More than 1
    leaves room for images whose concept is weaker than in those trained on."""
    granularity: Granularity = "images"
    """What a row is: a token, or the mean of an image's tokens."""
    reduction: Reduction = "mean"
    """Root mean square per row (mean), so that the λ's do not depend on the number of rows, or
    norms over all rows (sum, the published form)."""
    lambda_preserve: float = 2.5
    """Weight of the preserve term."""
    max_pixels: int = 2**20
    """Larger images are scaled down to this area."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the tower."""
    keep_means: int = 2000
    """How many images to keep have their mean embedding held in memory, drawn with the seed: near
    and twin choose among them and readers are fitted on them; no more are held out for evaluation.
    All are trained on."""
    mesh: str | None = None
    """data=N: how many devices run the tower, each on images of its own; by default all here.
    data=N,fsdp=M: N times M devices, of which M share the weights of the tower's blocks: one holds
    a part of each layer, and gathers a layer when its turn comes."""
    batch_patches: int = PATCHES
    """Patches of a device's batch, a power of two; `inspect --plan` says how many fit."""
    workers: int | None = None
    """Processes that decode and pack images; by default none on a CPU, where the tower needs the
    cores, and elsewhere up to 8, one for each 128 megapixels, as it takes seconds to start."""
    resume: bool = False
    """Go on from the snapshots in OUT.resume, if there are some, with the same settings, checkpoint
    and images."""
    save_seconds: float = 600.0
    """Time from one snapshot of a run that is not finished to the next; a shorter one leaves none.
    SIGTERM saves one at once."""
    save_steps: int | None = None
    """Batches, or chunks of epochs, from one snapshot to the next, if that comes first."""
    distributed: bool = False
    """One of several processes, started alike on each host; the first writes. TPU pods, SLURM and
    GKE say which is which."""
    coordinator: str | None = None
    """HOST:PORT of the first process, where nothing says it."""
    process_id: int | None = None
    """Number of this process, from 0."""
    processes: int | None = None
    """How many there are."""
    heartbeat_seconds: int = 60
    """A process that is not heard of for so long counts as gone, and ends the others."""
    questions: Path | None = None
    """JSON list of {question, answers: {class: answer}} for `evaluate --vlm`."""
    save_statistics: bool = True
    """Leave statistics.safetensors in --out, for --statistics: of each tap, to forget and to keep,
    half a matrix of D_in × D_in in float64, less if there were few rows, and the mean of each image
    that evaluation needs (of CLIP a row a prompt and an image)."""
    statistics: Path | None = None
    """An earlier run, to train again on its statistics: no image is read, and no tower or encoder
    run. Its settings are the defaults; what its samples were read for cannot be changed."""
    auto: bool = False
    """Choose --lambda-forget, --lambda-preserve and --rank by a sweep over its default values."""
    strict: bool = False
    """Stop at the first image that cannot be read, instead of skipping it."""
    overwrite: bool = False
    """Replace --out if it exists."""


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The fields of a run, of a sweep's without what it tries."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)}


def to_json(config: RunConfig) -> dict[str, Any]:
    """JSON's form; paths are absolute, so that the run can be read from anywhere."""
    fields = dataclasses.asdict(config)
    fields |= {k: str(v.resolve()) for k, v in fields.items() if isinstance(v, Path)}
    fields |= {k: list(v) for k, v in fields.items() if isinstance(v, tuple)}
    return fields | {"other_images": [str(folder.resolve()) for folder in config.other_images]}


def read_config(run: Path) -> RunConfig:
    """The config of an existing run, but not how it ran: the machine may be another.

    Raises:
        UserError: the directory is not a run's.
    """
    path = run / "config.json"
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        paths = {"checkpoint", "forget", "preserve", "out", "questions", "images", "statistics"}
        paths |= {"forget_held_out", "preserve_held_out"}
        values: dict[str, Any] = {k: Path(v) if k in paths and v else v for k, v in fields.items()}
        # JSON knows no tuples, and earlier runs name a single choice of Mergers.
        values |= {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        values["other_images"] = tuple(map(Path, values.get("other_images", ())))
        if isinstance(targets := values.get("targets"), str):
            values["targets"] = (targets,)
        kept = {k: v for k, v in values.items() if k not in HOW_IT_RUNS or k == "out"}
        return RunConfig(**kept)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the config of a run ({error}); give its directory") from error
