"""Attack: one small perturbation of all images that brings their embeddings back.

Sign-gradient steps through the Flax tower and the edited Mergers, on some images of the concept;
each is drawn towards its own embedding by the original model. The perturbed images, rounded to
whole levels, are then asked about. An attacker who has the original model needs no perturbation;
this measures how near the edited model's inputs lie to what would undo the edit.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from jax_unlearn.attacks.edited_model import BEFORE, rates
from jax_unlearn.attacks.groups import Groups
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.target import AttackedRun
from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.data.preprocess import Preprocessor
from jax_unlearn.models.lora import LoraAdapter

RANDOM = "random signs"
CONTROLS = {
    RANDOM: "a perturbation of the same size with random signs",
    BEFORE: "the model before the edit on the same perturbed images, which must still name it",
}
# Largest change of a pixel, of 255 levels.
LEVELS = (8, 16)
STEPS = {"small": 30, "full": 200}
# Images of a gradient step.
BATCH = 16
Pixels = Float[Array | np.ndarray, "n h w 3"]


class Differentiable:
    """Images of one size as arrays, and the edited model's embeddings of them.

    Args:
        run: the run.
        size: (width, height) of the images.
    """

    def __init__(self, run: AttackedRun, size: tuple[int, int]) -> None:
        self.run = run
        height, width = run.preprocessor.resized(size[1], size[0])
        self.size = (width, height)
        patch = run.preprocessor.patch
        self.grid = np.array([[1, height // patch, width // patch]])

    def pixels(self, image: Image.Image) -> Float[np.ndarray, "h w 3"]:
        """An image at the size that the tower sees, in levels from 0 to 255."""
        resample = self.run.preprocessor.pixels.resample
        if image.size != self.size:
            image = image.resize(self.size, resample)
        return np.asarray(image.convert("RGB"), np.float32)

    @cached_property
    def embeddings(self) -> Callable[..., dict[str, Array]]:
        """The jitted embeddings [n, tokens, E] of pixels by every projector."""
        tower, grid = self.run.tower, self.grid

        def of(pixels: Pixels, adapter: LoraAdapter | None) -> dict[str, Array]:
            n = len(pixels)
            patches = patchified(pixels, self.run.preprocessor)
            found = tower(patches, np.repeat(grid, n, axis=0), adapter)
            return {k: x.reshape(n, -1, x.shape[-1]) for k, x in found.outputs.items()}

        return of

    def perturbation(
        self, files: Sequence[ImageFile], levels: int, steps: int, seed: int
    ) -> Float[np.ndarray, "h w 3"]:
        """The perturbation, within ± levels."""
        x = jnp.stack([self.pixels(read_image(file.source())) for file in files])
        aims = [self.embeddings(x[i : i + BATCH], None) for i in range(0, len(x), BATCH)]
        aim = {name: jnp.concatenate([part[name] for part in aims]) for name in aims[0]}
        adapter = self.run.adapter

        def distance(delta: Array, x: Pixels, aim: dict[str, Array]) -> Array:
            found = self.embeddings(x + delta, adapter)
            parts = [((found[k] - aim[k]) ** 2).sum() / (aim[k] ** 2).sum() for k in aim]
            return jnp.stack(parts).mean()

        gradient = jax.jit(jax.grad(distance))
        random = np.random.default_rng(seed)
        delta = jnp.zeros(x.shape[1:])
        for _ in range(steps):
            own = np.sort(random.permutation(len(x))[:BATCH])
            slope = gradient(delta, x[own], {name: part[own] for name, part in aim.items()})
            # Steps that could cross the whole range a few times.
            delta = jnp.clip(delta - 4 * levels / steps * jnp.sign(slope), -levels, levels)
        return np.asarray(delta)

    def perturbed(self, image: Image.Image, delta: np.ndarray) -> Image.Image:
        levels = np.rint(self.pixels(image) + delta).clip(0, 255)
        return Image.fromarray(levels.astype(np.uint8))


def patchified(pixels: Pixels, preprocessor: Preprocessor) -> Float[Array, "patches patch"]:
    """What the image processor makes of images at the tower's size; differentiable."""
    settings = preprocessor.pixels
    x = pixels if settings.scale is None else pixels * settings.scale
    if settings.mean is not None and settings.std is not None:
        x = (x - settings.mean) / settings.std
    n, height, width, channels = x.shape
    p, m = preprocessor.patch, preprocessor.merge
    split = x.reshape(n, height // p // m, m, p, width // p // m, m, p, channels)
    # By image and merge block; within a patch: channels, frames, rows, columns.
    ordered = split.transpose(0, 1, 4, 2, 5, 7, 3, 6)[..., None, :, :]
    frames = jnp.broadcast_to(ordered, (*ordered.shape[:-3], preprocessor.frames, p, p))
    return frames.reshape(-1, preprocessor.patch_dim)


def usual_size(files: Sequence[ImageFile]) -> tuple[int, int]:
    """The most frequent size (width, height) of images."""
    sizes = Counter(read_image(file.source()).size for file in files)
    return sizes.most_common(1)[0][0]


def trials(run: AttackedRun) -> Iterator[Trial]:
    for seed in run.seeds:
        for levels in LEVELS:
            for subject in (EDITED, *CONTROLS):
                measure = partial(asked, run, levels, subject, seed)
                yield Trial(subject, {"levels": levels}, seed, measure)


def asked(run: AttackedRun, levels: int, subject: str, seed: int) -> list[Row]:
    fit, test = run.split(seed)
    size = usual_size(fit.forget)
    attack = Differentiable(run, size)
    if subject == RANDOM:
        random = np.random.default_rng(seed)
        delta = levels * random.choice([-1.0, 1.0], (*attack.size[::-1], 3))
    else:
        files = [file for file in fit.forget if read_image(file.source()).size == size]
        delta = attack.perturbation(files, levels, STEPS[run.budget], seed)
    groups = Groups(
        *(
            tuple(file for file in side if read_image(file.source()).size == size)
            for side in (test.forget, test.counterpart, test.others)
        )
    )
    left_out = sum(test.counts.values()) - sum(groups.counts.values())
    with run.model.of(subject):
        found = rates(
            run.model.vlm,
            run.naming,
            groups,
            lambda images: [attack.perturbed(image, delta) for image in images],
        )
    return [{**found, "left_out": left_out}]


ATTACK = Attack(
    "universal_perturbation",
    "Adds one perturbation of at most 8 or 16 of 255 levels, found by gradients on other images of "
    "the concept, to every image of the most frequent size.",
    {budget: f"{steps} sign-gradient steps of {BATCH} images" for budget, steps in STEPS.items()},
    CONTROLS,
    True,
    trials,
)
