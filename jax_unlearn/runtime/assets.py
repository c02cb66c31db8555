"""Paths of the shipped checkpoints, images and questions."""

from importlib import resources
from pathlib import Path

ASSETS = Path(str(resources.files("jax_unlearn"))) / "assets"
CLIP_ASSETS = ASSETS / "clip"
