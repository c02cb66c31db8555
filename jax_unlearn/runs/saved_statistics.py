"""Whether a run's statistics are written, and who may read what is made from its images."""

from collections.abc import Sequence
from pathlib import Path

from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.statistics_file import FILE, save_statistics
from jax_unlearn.objective.projectors import projectors_of
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig

# Bytes of statistics that are written without being asked for.
SMALL = 64 * 2**20


def write_statistics(out: Path, extracted: Extracted, config: RunConfig) -> Metrics:
    """Write the statistics if the settings ask for it; returns size and outcome for metrics.json.

    Tokens before a GELU have no statistics.
    """
    choice = config.execution.save_statistics
    if choice == "no" or not all(p.is_linear for p in projectors_of(extracted.linears)):
        return {"written": False, "bytes": None}
    size = save_statistics(out, extracted, SMALL if choice == "small" else None)
    return {"written": choice == "yes" or size <= SMALL, "bytes": size}


def unsaved_statistics(saved: Metrics) -> str | None:
    """The line for statistics that were too large to be written unasked; None if there are none."""
    if saved["written"] or saved["bytes"] is None:
        return None
    size, limit = saved["bytes"] / 2**20, SMALL // 2**20
    return (
        f"{FILE} was not written, as it has {size:,.0f} MiB and more than {limit} MiB are written "
        "only with --save-statistics yes; --statistics needs it, and evaluate runs the tower again"
    )


def protect(out: Path, samples: SampleSettings, more: Sequence[Path] = ()) -> None:
    """Let nobody read a directory made from images who may not read their folders.

    The statistics hold mean embeddings of the images, and the report shows some of them. The
    directory's mode so far, and with it the umask, is only narrowed. `more`: further folders.
    """
    folders = (
        samples.forget,
        samples.preserve,
        samples.forget_held_out,
        samples.preserve_held_out,
        samples.images,
        *samples.other_images,
        samples.statistics,
        None if samples.stand_in is None else Path(samples.stand_in),
        *more,
    )
    mode = out.stat().st_mode & 0o777
    for folder in folders:
        if folder is not None and folder.exists():
            # Of a shard, the right to read stands for that to open a folder.
            allowed = folder.stat().st_mode
            mode &= allowed | 0o700 | (0 if folder.is_dir() else (allowed & 0o044) >> 2)
    out.chmod(mode)
    if (out / FILE).is_file():
        # safetensors writes files that only their owner can read.
        (out / FILE).chmod(mode & 0o666)
