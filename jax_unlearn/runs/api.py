"""The whole job as a Python function: `unlearn`, and the run that it returns."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console

import porting
from jax_unlearn.data.images import read_image
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runs.export import Export, export
from jax_unlearn.runs.pipeline import run
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig, read_config, setting_types, typed
from jax_unlearn.runs.settings.presets import Preset, start_settings
from jax_unlearn.runtime.arguments import path_argument
from jax_unlearn.runtime.digests import read_sealed
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.xla_flags import make_reproducible


class Answers(NamedTuple):
    """What the model says about an image, without and with the adapter."""

    before: str
    after: str


@dataclass(frozen=True)
class Run:
    """A run's directory, as `unlearn` or the command `run` wrote it.

    Raises:
        UserError: by every property and method, if the directory is not that of a run.
    """

    directory: Path

    @cached_property
    def config(self) -> RunConfig:
        """The settings, except those of execution."""
        return read_config(self.directory)

    @cached_property
    def metrics(self) -> Metrics:
        """The content of metrics.json (docs/run-directory.md)."""
        return read_sealed(self.directory / "metrics.json")

    @cached_property
    def adapter(self) -> LoraAdapter:
        """The low-rank change, by Linear."""
        return porting.load_peft(self.directory / "adapter")

    def save_peft(self, out: str | Path, overwrite: bool = False) -> Path:
        """Write the adapter for PEFT, as `jax-unlearn export --format peft`.

        Raises:
            UserError: `out` exists without `overwrite`, or contains the run.
        """
        export(Export(self.directory, Path(out), "peft", overwrite=overwrite))
        return Path(out)

    def merge(
        self, out: str | Path, undo: str | Path | None = None, overwrite: bool = False
    ) -> Path:
        """Write the checkpoint with the change merged in, as `jax-unlearn export`.

        Args:
            out: directory to create.
            undo: file to write the original weights to, for `porting.unmerge_checkpoint`; by
                default they are not kept.
            overwrite: replace `out` and `undo` if they exist.

        Raises:
            UserError: `out` exists without `overwrite`, or the checkpoint is missing or has
                changed.
        """
        kept = None if undo is None else Path(undo)
        export(Export(self.directory, Path(out), undo=kept, overwrite=overwrite))
        return Path(out)

    def ask(self, image: str | Path | Image.Image, question: str) -> Answers:
        """Ask the Hugging Face model about an image, without and with the adapter; needs torch.

        Raises:
            UserError: torch or peft is not installed, or the model has no language.
        """
        # Imported here because it imports torch, which the rest of the package does not need.
        from jax_unlearn.evaluate.vlm.asking import ask
        from jax_unlearn.evaluate.vlm.model import load_vlm

        checkpoint = self.config.samples.checkpoint
        if porting.is_clip(checkpoint):
            raise UserError(f"{checkpoint}: is a CLIP, which answers no questions")
        picture = image if isinstance(image, Image.Image) else read_image(Path(image))
        vlm = load_vlm(
            checkpoint,
            self.directory / "adapter",
            max_pixels=self.config.extraction.max_pixels,
        )
        asked = [picture.convert("RGB")], question
        with vlm.with_adapter(False):
            (before,) = ask(vlm, *asked, max_new_tokens=vlm.new_tokens)
        (after,) = ask(vlm, *asked, max_new_tokens=vlm.new_tokens)
        return Answers(before, after)


def unlearn(
    checkpoint: str | Path,
    *,
    out: str | Path,
    forget: str | Path | None = None,
    preserve: str | Path | None = None,
    preset: Preset = "default",
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Make a model forget what a folder of images shows: the whole job, as the command `run`.

        run = unlearn("Qwen/Qwen3-VL-2B-Instruct", forget="photos/me", preserve="photos/others",
                      out="run")
        run.merge("forgetful")

    Args:
        checkpoint: directory of a checkpoint, or its id on the Hugging Face hub.
        out: directory of the run, which is created.
        forget: folder of images to forget; for CLIP's text side give `forget_text` instead.
        preserve: folder of images to keep; for CLIP's text side give `preserve_text` instead.
        preset: the initial settings.
        progress: show progress on stderr.
        settings: the other options of `run` by name, such as `rank=1` or `concept="red triangle"`
            (docs/settings.md).

    Raises:
        UserError: bad input, or a setting that would have no effect; no directory is then written.
        TypeError: a name is not that of a setting, or a value has another type.
    """
    make_reproducible()
    hints = setting_types(RunConfig)
    settings |= {"forget": forget, "preserve": preserve}
    # A name that is no setting is refused below.
    values = {
        name: typed(name, value, hints[name]) if name in hints else value
        for name, value in settings.items()
    }
    start = start_settings(
        preset,
        checkpoint=path_argument("checkpoint", checkpoint),
        out=path_argument("out", out),
        forget_text=values.get("forget_text", ()),
        statistics=values.get("statistics"),
        target=values.get("target"),
        given=values,
    )
    run(start.replace(**values), Console(stderr=True, quiet=not progress), start)
    return Run(Path(out))
