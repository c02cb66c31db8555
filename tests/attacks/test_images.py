"""Attacks through the image: changes of it, and a perturbation found through the Flax tower."""

import numpy as np
import pytest
from PIL import Image

from jax_unlearn.attacks import image_changes
from jax_unlearn.attacks.universal_perturbation import Differentiable, patchified, usual_size
from jax_unlearn.data.images import read_image


def picture(seed, size=(40, 32)):
    levels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3))
    return Image.fromarray(levels.astype(np.uint8)).resize(size)


@pytest.mark.parametrize("name", image_changes.CHANGES)
def test_a_change_keeps_the_size_and_changes_the_image(name):
    image = picture(0)
    before = image.tobytes()
    changed = image_changes.CHANGES[name](image)
    assert changed.mode == "RGB"
    assert sorted(changed.size) == sorted(image.size)
    assert (changed.tobytes() == before) == (name == "none")
    # The image itself stays, since other changes are made of it.
    assert image.tobytes() == before


@pytest.mark.parametrize(("name", "size"), [("beside another image", (80, 32)),
                                            ("pasted onto another image", (40, 32)),
                                            ("in a collage of four", (80, 64))])  # fmt: skip
def test_two_images_together_show_both(name, size):
    image, other = Image.new("RGB", (40, 32), "red"), Image.new("RGB", (20, 20), "blue")
    found = image_changes.TOGETHER[name](image, other)
    assert found.size == size
    assert {color for _, color in found.getcolors()} == {(255, 0, 0), (0, 0, 255)}


def test_pixels_become_the_processor_s_patches(attacked):
    file = attacked.extracted.test.forget.files[0]
    image = read_image(file.source())
    attack = Differentiable(attacked, image.size)
    ours = patchified(attack.pixels(image)[None], attacked.preprocessor)
    theirs, grid = attacked.preprocessor(image)
    assert (attack.grid == grid).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_perturbation_brings_embeddings_back_within_its_bounds(attacked):
    fit, test = attacked.split(0)
    attack = Differentiable(attacked, usual_size(fit.forget))
    delta = attack.perturbation(fit.forget, 8, 10, 0)
    assert delta.shape == (64, 64, 3)
    assert 4 < np.abs(delta).max() <= 8
    perturbed = attack.perturbed(read_image(test.forget[0].source()), delta)
    assert perturbed.size == (64, 64)

    def away(delta):
        """Relative distance of unseen images' embeddings from those before the edit."""
        x = np.stack([attack.pixels(read_image(file.source())) for file in test.forget])
        aim, found = attack.embeddings(x, None), attack.embeddings(x + delta, attacked.adapter)
        parts = [((found[k] - aim[k]) ** 2).sum() / (aim[k] ** 2).sum() for k in aim]
        return float(np.mean(parts))

    signs = 8 * np.random.default_rng(0).choice([-1.0, 1.0], delta.shape)
    assert away(delta) < 0.96 * away(0 * delta)
    assert away(signs) > 0.98 * away(0 * delta)
