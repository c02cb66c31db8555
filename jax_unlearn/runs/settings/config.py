"""RunConfig: the settings of the stages, composed; flat on the command line and in config.json."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.features.extractor import ExtractionSettings
from jax_unlearn.objective.problem import FITTED, ObjectiveSettings
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import leaf_fields, used_if
from jax_unlearn.solvers.config import SolverConfig

Optimizer = Literal["closed_form", "adam", "leace"]


@dataclass(frozen=True)
class SolverSettings(SolverConfig):
    """Which solver fits the adapter, how often, and its own settings."""

    optimizer: Optimizer | None = None
    """closed_form computes the adapter, adam trains it; leace instead erases what a linear probe
    can read, by a change of rank 1 and of the bias, without λ's, target and rank. By default
    closed_form, and adam where linear_fc1 is adapted."""
    until_forgotten: float | None = used_if(None, optimizer=FITTED, sweep=False)
    """Fit again with --lambda-forget larger by 0.05 until the forget norm has fallen by this share,
    at most 100 times."""
    count_rise: bool = used_if(False, until_forgotten=True)
    """With --until-forgotten: a rise of the forget norm by that share ends the search too, as in
    the published code."""
    auto: bool = used_if(False, optimizer=FITTED, command="run")
    """Choose --lambda-forget, --lambda-preserve and --rank by a sweep over its default values."""


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How a run is carried out; none of these changes the adapter."""

    out: Path
    """Directory of the run, made here."""
    overwrite: bool = False
    """Replace --out if it exists."""
    strict: bool = used_if(False, reads_images=True)
    """Stop at the first image that cannot be read, instead of skipping it."""
    save_statistics: bool = used_if(True, adapts_fc1=False)
    """Leave statistics.safetensors in --out, for --statistics: of each tap, to forget and to keep,
    half a matrix of D_in × D_in in float64, less if there were few rows, and the mean of each image
    that evaluation needs (with CLIP a row per prompt and image)."""
    mesh: str | None = used_if(None, source="qwen_images", saved=False)
    """data=N: how many devices run the tower, each on images of its own; by default all here.
    data=N,fsdp=M: N times M devices, of which M share the weights of the tower's blocks: one holds
    a part of each layer, and gathers a layer when it is needed."""
    workers: int | None = used_if(None, source="qwen_images", saved=False)
    """Processes that decode and pack images; by default none on a CPU, where the tower needs the
    cores, and elsewhere up to 8, one for each 128 megapixels, as it takes seconds to start."""
    resume: bool = False
    """Continue from the snapshots in OUT.resume, if there are some, with the same settings,
    checkpoint and images."""
    save_seconds: float = used_if(600.0, resumable=True)
    """Seconds from one snapshot of an unfinished run to the next; a shorter run leaves none.
    SIGTERM saves one at once."""
    save_steps: int | None = used_if(None, resumable=True)
    """Batches, or chunks of epochs, from one snapshot to the next, if that comes first."""
    distributed: bool = used_if(False, source="qwen_images", saved=False)
    """This is one of several processes, started alike on each host; the first writes. TPU pods,
    SLURM and GKE say which is which."""
    coordinator: str | None = used_if(None, distributed=True)
    """HOST:PORT of the first process, where no environment says it."""
    process_id: int | None = used_if(None, distributed=True)
    """Number of this process, from 0."""
    processes: int | None = used_if(None, distributed=True)
    """Number of processes."""
    heartbeat_seconds: int = used_if(60, distributed=True)
    """Seconds without a heartbeat after which a process is declared dead and the run stops."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run needs, in the groups that its stages read."""

    samples: SampleSettings
    extraction: ExtractionSettings = field(default_factory=ExtractionSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    solver: SolverSettings = field(default_factory=SolverSettings)
    execution: ExecutionSettings

    @classmethod
    def of(cls, **settings: Any) -> "RunConfig":
        """From settings by their names, whatever group they are in.

        Raises:
            TypeError: a name that is not a setting, or one without a default that is not given.
        """
        return build(cls, settings)

    def replace(self, **settings: Any) -> "RunConfig":
        """The same with other values of some settings, by their names.

        Raises:
            TypeError: a name that is not a setting.
        """
        return build(type(self), settings, self)


def build(kind: type[Any], settings: dict[str, Any], defaults: Any = None) -> Any:
    """An instance of a dataclass of groups from settings by their names.

    Args:
        defaults: an instance of a class that has some of the groups, for what is not given.

    Raises:
        TypeError: a name that is not a setting, or one without a value.
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
    """Every setting by its name."""
    groups = (getattr(config, one.name) for one in dataclasses.fields(config))
    return {name: getattr(group, name) for group in groups for name in leaf_fields(group)}


def to_json(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON has them; paths are absolute, so that the run can be read anywhere."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value.resolve())
        return [plain(one) for one in value] if isinstance(value, tuple) else value

    return {name: plain(value) for name, value in flat(config).items()}


def read_config(run: Path) -> RunConfig:
    """The settings of an existing run, but not how it was carried out: the machine may be another.

    Raises:
        UserError: the directory is not a run's.
    """
    path = run / "config.json"
    try:
        stored = as_stored_now(json.loads(path.read_text()))
        how = set(leaf_fields(ExecutionSettings)) - {"out"}
        hints = setting_types(RunConfig)
        values = {k: from_json(v, hints[k]) for k, v in stored.items() if k not in how}
        return RunConfig.of(**values)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: not the config of a run ({error}); give its directory") from error


def as_stored_now(stored: dict[str, Any]) -> dict[str, Any]:
    """Settings as earlier versions wrote them: with a preset's label, and one Merger by its name.

    The label stood for one setting that was not written.
    """
    values = {name: value for name, value in stored.items() if name != "preset"}
    if stored.get("preset") == "faithful":
        values["count_rise"] = True
    if isinstance(targets := values.get("targets"), str):
        values["targets"] = [targets]
    return values


def setting_types(kind: type[Any]) -> dict[str, Any]:
    """The type of each setting by its name."""
    groups = (one.type for one in dataclasses.fields(kind))
    return {name: hint for group in groups for name, hint in get_type_hints(group).items()}


def from_json(value: Any, hint: Any) -> Any:
    """JSON has neither paths nor tuples."""
    if isinstance(value, list):
        return tuple(from_json(one, get_args(hint)[0]) for one in value)
    kinds = (hint, *get_args(hint))
    return Path(value) if isinstance(value, str) and Path in kinds and str not in kinds else value
