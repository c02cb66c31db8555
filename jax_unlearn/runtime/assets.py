"""Where the shipped checkpoint, images and questions are."""

from importlib import resources
from pathlib import Path

ASSETS = Path(str(resources.files("jax_unlearn"))) / "assets"
CLIP_ASSETS = ASSETS / "clip"
