"""Attack: ask about changed images: turned, cut, compressed, blurred, beside another object.

A change counts only where the model before the edit still names the concept in it, which is the
control.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jax_unlearn.attacks.edited_model import BEFORE, rates
from jax_unlearn.attacks.groups import Groups, spread
from jax_unlearn.attacks.registry import EDITED, Attack, Row, Trial
from jax_unlearn.attacks.target import AttackedRun
from jax_unlearn.data.images import read_image

CONTROLS = {BEFORE: "the model before the edit, which must still name the concept"}
TESTED = {"small": 32, "full": 200}
Picture = Image.Image


def cropped(image: Picture, share: float) -> Picture:
    """The middle of an image, enlarged to its size again."""
    width, height = image.size
    cut = (1 - share) / 2
    box = (width * cut, height * cut, width * (1 - cut), height * (1 - cut))
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


def turned(image: Picture, degrees: float) -> Picture:
    corner = image.getpixel((0, 0))
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=corner)


def compressed(image: Picture, quality: int) -> Picture:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def noisy(image: Picture, deviation: float) -> Picture:
    # The same noise for every image of a size, so that a change can be repeated.
    noise = np.random.default_rng(0).normal(0, deviation, (*image.size[::-1], 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def coarser(image: Picture, factor: float) -> Picture:
    """Reduced and enlarged again."""
    small = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(small, Image.Resampling.BILINEAR).resize(image.size)


def shrunk(image: Picture, share: float) -> Picture:
    """Smaller, on a page of the colour of its corner."""
    width, height = image.size
    page = Image.new("RGB", image.size, image.getpixel((0, 0)))
    small = image.resize((round(width * share), round(height * share)), Image.Resampling.BICUBIC)
    page.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return page


def coloured(image: Picture) -> Picture:
    """The colours exchanged: red as green, green as blue, blue as red."""
    return Image.fromarray(np.roll(np.asarray(image), 1, axis=2))


# Of a single image.
CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "none": lambda image: image,
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned by 10°": lambda image: turned(image, 10.0),
    "turned by 45°": lambda image: turned(image, 45.0),
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "middle 90 %": lambda image: cropped(image, 0.9),
    "middle 70 %": lambda image: cropped(image, 0.7),
    "middle 50 %": lambda image: cropped(image, 0.5),
    "JPEG quality 50": lambda image: compressed(image, 50),
    "JPEG quality 10": lambda image: compressed(image, 10),
    "noise of 10 levels": lambda image: noisy(image, 10.0),
    "noise of 30 levels": lambda image: noisy(image, 30.0),
    "blurred over 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "blurred over 3 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(3)),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "colours exchanged": coloured,
    "negative": ImageOps.invert,
    "darker by half": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "brighter by half": lambda image: ImageEnhance.Brightness(image).enhance(1.5),
    "contrast halved": lambda image: ImageEnhance.Contrast(image).enhance(0.5),
    "half the resolution": lambda image: coarser(image, 0.5),
    "a quarter of the resolution": lambda image: coarser(image, 0.25),
    "shrunk to 70 %": lambda image: shrunk(image, 0.7),
    "shrunk to 40 %": lambda image: shrunk(image, 0.4),
}
# Of an image and another, which shows something else.
TOGETHER: dict[str, Callable[[Picture, Picture], Picture]] = {
    "beside another image": lambda image, other: beside(image, other),
    "pasted onto another image": lambda image, other: pasted(image, other),
    "in a collage of four": lambda image, other: collage(image, other),
}


def beside(image: Picture, other: Picture) -> Picture:
    page = Image.new("RGB", (2 * image.width, image.height))
    page.paste(image, (0, 0))
    page.paste(other.resize(image.size), (image.width, 0))
    return page


def pasted(image: Picture, other: Picture) -> Picture:
    page = other.resize(image.size)
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    page.paste(small, (image.width // 4, image.height // 4))
    return page


def collage(image: Picture, other: Picture) -> Picture:
    page = Image.new("RGB", (2 * image.width, 2 * image.height))
    tiles = (image, other.resize(image.size), other.resize(image.size), image)
    for i, tile in enumerate(tiles):
        page.paste(tile, (i % 2 * image.width, i // 2 * image.height))
    return page


def trials(run: AttackedRun) -> Iterator[Trial]:
    seed = run.seeds[0]
    for name in (*CHANGES, *(TOGETHER if run.split(seed)[0].others else ())):
        for subject in (EDITED, BEFORE):
            yield Trial(subject, {"change": name}, seed, partial(measure, run, name, subject, seed))


def measure(run: AttackedRun, name: str, subject: str, seed: int) -> list[Row]:
    with run.model.of(subject):
        return [asked(run, name, seed)]


def asked(run: AttackedRun, name: str, seed: int) -> Row:
    most = TESTED[run.budget]
    test = run.split(seed)[1]
    groups = Groups(*(spread(side, most) for side in (test.forget, test.counterpart, test.others)))
    # What the images are shown together with.
    files = run.split(seed)[0].others[:most] if name in TOGETHER else ()
    others = [read_image(file.source()) for file in files]

    def change(pictures: Sequence[Picture]) -> list[Picture]:
        if name in CHANGES:
            return [CHANGES[name](one) for one in pictures]
        return [TOGETHER[name](one, others[i % len(others)]) for i, one in enumerate(pictures)]

    return dict(rates(run.model.vlm, run.naming, groups, change))


def left_out(run: AttackedRun) -> list[str]:
    if run.split(run.seeds[0])[0].others:
        return []
    return [f"{', '.join(TOGETHER)}: not tried: no held-out image shows anything else"]


ATTACK = Attack(
    "image_changes",
    "Asks about changed images: mirrored, turned, cropped, compressed, noisy, blurred, recoloured, "
    "coarser, beside or on another image.",
    {
        budget: f"{len(CHANGES) + len(TOGETHER)} changes, at most {most} images of each group"
        for budget, most in TESTED.items()
    },
    CONTROLS,
    True,
    trials,
    left_out,
)
