"""The demo: a run over the bundled model and images."""

from dataclasses import dataclass
from pathlib import Path

from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.presets import Preset, start_settings
from jax_unlearn.runtime.assets import ASSETS, CLIP_ASSETS
from jax_unlearn.runtime.errors import UserError

CLIP_CONCEPT = "red triangle"


@dataclass(frozen=True)
class Demo:
    """Run on the bundled model and images, on CPU, without network."""

    concept: str | None = None
    """Concept to forget: a photo (astronaut by default), a shape, a colour, or a pair of both; with
    --clip one of its names ("red triangle" by default)."""
    clip: bool = False
    """Forget a name through the text side of the bundled CLIP."""
    out: Path = Path("unlearn-demo")
    """Directory of the run."""
    preset: Preset = "default"
    """Initial settings: default, those that worked best in our measurements; faithful, the
    published scheme; clip-…, its constants for CLIP (with --clip)."""
    overwrite: bool = False
    """Replace --out if it exists."""


def demo_start(demo: Demo) -> RunConfig:
    """The preset's settings on the bundled model."""
    assets = CLIP_ASSETS if demo.clip else ASSETS
    return start_settings(
        demo.preset,
        checkpoint=assets / "checkpoint",
        out=demo.out,
        forget_text=(demo.concept or CLIP_CONCEPT,) if demo.clip else (),
    )


def demo_config(demo: Demo) -> RunConfig:
    """The settings of the demo, a run on the bundled folders."""
    if demo.clip:
        return clip_demo_config(demo)
    return demo_start(demo).replace(
        forget=ASSETS / "images" / "train",
        preserve=ASSETS / "images" / "train",
        forget_held_out=ASSETS / "images" / "test",
        preserve_held_out=ASSETS / "images" / "test",
        questions=ASSETS / "questions.json",
        concept=demo.concept or "astronaut",
        overwrite=demo.overwrite,
    )


def clip_demo_config(demo: Demo) -> RunConfig:
    """The settings of the CLIP demo: forget one of the bundled names and preserve the others.

    Raises:
        UserError: `demo.concept` is not one of the names.
    """
    folder = CLIP_ASSETS / "images" / "test"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    concept = demo.concept or CLIP_CONCEPT
    if concept not in names:
        raise UserError(f"--concept {concept}: must be one of {', '.join(names)}")
    return demo_start(demo).replace(
        preserve_text=tuple(name for name in names if name != concept),
        images=folder,
        overwrite=demo.overwrite,
    )
