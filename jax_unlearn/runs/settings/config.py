"""RunConfig: the settings of a run in groups; flat on the command line and in config.json."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.features.extractor import ExtractionSettings
from jax_unlearn.objective.problem import FITTED, WITH_TARGET, ObjectiveSettings
from jax_unlearn.objective.targets import TARGETS
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import hub_id
from jax_unlearn.runtime.text_files import read_json
from jax_unlearn.runtime.used_if import leaf_fields, used_if
from jax_unlearn.solvers.config import SolverConfig

Optimizer = Literal["closed_form", "adam", "leace"]
# How a run is fitted: the stand-in target has its own solver.
Solver = Literal[Optimizer, "stand_in"]
Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class SolverSettings(SolverConfig):
    """Which solver fits the adapter, and its settings."""

    optimizer: Optimizer | None = used_if(None, target=TARGETS)
    """closed_form solves for the adapter, adam trains it; leace removes what a linear probe can
    read, by a change of rank 1 and of the bias, without λ's, target and rank. By default
    closed_form, or adam if linear_fc1 is adapted."""
    until_forgotten: float | None = used_if(None, optimizer=FITTED, sweep=False)
    """Fit repeatedly, raising --lambda-forget by 0.05 each time, until the forget norm has fallen
    by this share; at most 100 times."""
    count_rise: bool = used_if(False, until_forgotten=True)
    """With --until-forgotten: a rise of the forget norm by that share also ends the search, as in
    the published code."""
    auto: bool = used_if(False, optimizer=WITH_TARGET, command="run")
    """Choose --lambda-forget, --lambda-preserve and --rank by a sweep over its default values."""


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How a run is executed; these settings do not change the adapter."""

    out: Path
    """Directory of the run, created by it."""
    overwrite: bool = False
    """Replace --out if it exists."""
    base_model: str | None = None
    """Name of the checkpoint in the adapter, where PEFT looks for it; by default the repository of
    a snapshot in the Hugging Face cache, or the name of the checkpoint's directory."""
    strict: bool = used_if(False, reads_images=True)
    """Stop at the first image that cannot be read, instead of skipping it."""
    save_statistics: Literal["small", "yes", "no"] = used_if("small", adapts_fc1=False)
    """Write statistics.safetensors to --out, for --statistics: small, if it has at most 64 MiB. It
    contains, for each tap, half of a D_in × D_in matrix in float64 for forget and for preserve rows
    (less for few rows), and the mean of each image needed for evaluation (with CLIP a row per
    prompt and image). With D_in = 4096 and four Mergers that is 0.5 GiB."""
    pictures: bool = used_if(True, command="run", shows_images=True)
    """Show a few of the images in report.html."""
    track: tuple[Tracker, ...] = used_if((), command="run")
    """Log settings, training and metrics: to --out/tensorboard, or to Weights & Biases (each needs
    the extra of its name)."""
    mesh: str | None = used_if(None, source="qwen_images", saved=False)
    """data=N: number of devices that run the tower, each on its own images; by default all local
    devices. data=N,fsdp=M: N × M devices; the weights of the tower's blocks are sharded over M of
    them, and each layer's are gathered when it runs."""
    workers: int | None = used_if(None, source="qwen_images", saved=False)
    """Processes that decode and pack images; by default none on a CPU, where the tower needs the
    cores, and otherwise one per 128 megapixels, at most 8, since each takes seconds to start."""
    resume: bool = False
    """Continue from the snapshots in OUT.resume, if there are any, with the same settings,
    checkpoint and images."""
    save_seconds: float = used_if(600.0, resumable=True)
    """Seconds between snapshots of an unfinished run; a shorter run saves none. SIGTERM and
    Ctrl-C save one at once."""
    save_steps: int | None = used_if(None, resumable=True)
    """Batches, or chunks of epochs, between snapshots, if that comes first."""
    distributed: bool = used_if(False, source="qwen_images", saved=False)
    """This is one of several processes, started on each host with the same options; process 0
    writes the results. On TPU pods, SLURM and GKE the processes are detected."""
    coordinator: str | None = used_if(None, distributed=True)
    """HOST:PORT of process 0, where the processes are not detected."""
    process_id: int | None = used_if(None, distributed=True)
    """Index of this process, from 0."""
    processes: int | None = used_if(None, distributed=True)
    """Number of processes."""
    wait_seconds: float = used_if(300.0, distributed=True)
    """Longest wait for the other processes at the start, where they are given by --coordinator."""
    heartbeat_seconds: int = used_if(60, distributed=True)
    """Seconds without a heartbeat after which a process is declared dead and the run stops."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of a run, in the groups that its stages read."""

    samples: SampleSettings
    extraction: ExtractionSettings = field(default_factory=ExtractionSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    solver: SolverSettings = field(default_factory=SolverSettings)
    execution: ExecutionSettings

    @classmethod
    def of(cls, **settings: Any) -> "RunConfig":
        """Create a config from settings by name, from any group.

        Raises:
            TypeError: a name is not a setting, or a setting without a default is missing.
        """
        return build(cls, settings)

    def replace(self, **settings: Any) -> "RunConfig":
        """A copy with other values for some settings, by name.

        Raises:
            TypeError: a name is not a setting.
        """
        return build(type(self), settings, self)


def build(kind: type[Any], settings: dict[str, Any], defaults: Any = None) -> Any:
    """Create an instance of a dataclass of groups from settings by name.

    Args:
        kind: the dataclass.
        settings: values by name.
        defaults: an instance of a class that has some of the groups, for settings not given.

    Raises:
        TypeError: a name is not a setting, or a setting has no value.
    """
    left = dict(settings)
    groups: dict[str, Any] = {}
    for one in dataclasses.fields(kind):
        group: Any = one.type
        own = {name: left.pop(name) for name in leaf_fields(group) if name in left}
        earlier = getattr(defaults, one.name, None)
        groups[one.name] = dataclasses.replace(earlier, **own) if earlier else group(**own)
    if left:
        raise TypeError(f"{min(left)}: is not a setting of a run")
    return kind(**groups)


def flat(config: Any) -> dict[str, Any]:
    """All settings of a config by name."""
    groups = (getattr(config, one.name) for one in dataclasses.fields(config))
    return {name: getattr(group, name) for group in groups for name in leaf_fields(group)}


def to_json(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON values; paths are absolute, so that they hold in any directory."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.resolve())
        return [plain(one) for one in value] if isinstance(value, tuple) else value

    values = {name: plain(value) for name, value in flat(config).items()}
    checkpoint = config.samples.checkpoint
    return values | {"checkpoint": str(checkpoint)} if hub_id(checkpoint) else values


def read_config(run: Path) -> RunConfig:
    """The settings of an existing run, without those of execution that depend on the machine.

    Raises:
        UserError: `run` is not the directory of a run.
    """
    path = run / "config.json"
    try:
        return config_of(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: not the config of a run ({error}); give its directory") from error


def config_of(found: Any) -> RunConfig:
    """The settings in the content of a config.json, without those that depend on the machine.

    Raises:
        TypeError, KeyError: it is not of that form.
    """
    if not isinstance(found, dict):
        raise TypeError("it holds no JSON object")
    stored = as_stored_now(found)
    how = set(leaf_fields(ExecutionSettings)) - {"out", "pictures"}
    hints = setting_types(RunConfig)
    values = {k: typed(k, v, hints[k]) for k, v in stored.items() if k not in how}
    return RunConfig.of(**values)


def as_stored_now(stored: dict[str, Any]) -> dict[str, Any]:
    """Convert settings written by earlier versions to the current form.

    They had the name of a preset, which implied `count_rise`, and a single Merger as a string.
    """
    values = {name: value for name, value in stored.items() if name != "preset"}
    if stored.get("preset") == "faithful":
        values["count_rise"] = True
    if isinstance(targets := values.get("targets"), str):
        values["targets"] = [targets]
    return values


def setting_types(kind: type[Any]) -> dict[str, Any]:
    """The type of each setting, by name."""
    groups = (one.type for one in dataclasses.fields(kind))
    return {name: hint for group in groups for name, hint in get_type_hints(group).items()}


def typed(name: str, value: Any, hint: Any) -> Any:
    """Convert a JSON value to the type of a setting: lists to tuples, strings to paths.

    Raises:
        TypeError: it is not of that type; names the setting.
    """
    for kind in alternatives(hint):
        if get_origin(kind) is tuple and isinstance(value, list | tuple):
            return tuple(typed(name, one, get_args(kind)[0]) for one in value)
        if kind is Path and isinstance(value, str | Path):
            return Path(value)
        if get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind):
            return value
        # A whole number is a number too, but True is neither.
        of_kind = (
            isinstance(value, int | float if kind is float else kind)
            if isinstance(kind, type)
            else False
        )
        if of_kind and (kind is bool or not isinstance(value, bool)):
            return value
    raise TypeError(f"{name}: {str(value)[:60]!r} is not a value of this setting")


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
