"""A merged checkpoint in OpenCLIP's format, in OpenCLIP itself: the accuracies of the run.

OpenCLIP needs torchvision, of which no release goes with the PyTorch of the other tests, so that
these run in an environment of their own only: see docs/contributing.md.
"""

import numpy as np
import pytest

from jax_unlearn.data.images import read_image
from jax_unlearn.runs.cli import main
from jax_unlearn.runtime.assets import CLIP_ASSETS
from tests.open_clip import open_clip_of_bundled
from tests.running import read

open_clip = pytest.importorskip("open_clip", reason="needs OpenCLIP: docs/contributing.md")
torch = pytest.importorskip("torch")

IMAGES = CLIP_ASSETS / "images" / "test"
FORGET = "red circle"


def accuracies(directory, names):
    """Zero-shot accuracy of each class by OpenCLIP, from its own transform and tokenizer."""
    where = f"local-dir:{directory}"
    model, _, transform = open_clip.create_model_and_transforms(where)
    model.eval()
    # The bundled model has a vocabulary of its own.
    tokenizer = open_clip.tokenizer.HFTokenizer(str(directory), context_length=model.context_length)
    with torch.no_grad():
        texts = model.encode_text(tokenizer([f"a photo of a {name}." for name in names]))
        texts = texts / texts.norm(dim=-1, keepdim=True)
        found = {}
        for name in names:
            files = sorted((IMAGES / name).iterdir())
            pixels = torch.stack([transform(read_image(file)) for file in files])
            scores = model.encode_image(pixels) @ texts.T
            found[name] = float(np.mean(scores.argmax(dim=-1).numpy() == names.index(name)))
    return found


def test_the_accuracies_are_those_of_the_run_before_and_after(tmp_path):
    checkpoint = open_clip_of_bundled(tmp_path / "open")
    names = sorted(path.name for path in IMAGES.iterdir())
    kept = [name for name in names if name != FORGET]
    run, merged = tmp_path / "run", tmp_path / "merged"
    words = ["run", "--checkpoint", checkpoint, "--out", run, "--images", IMAGES]
    main([*map(str, words), "--forget-text", FORGET, "--preserve-text", *kept])
    main(["export", str(run), "--out", str(merged)])
    before, after = accuracies(checkpoint, names), accuracies(merged, names)
    metrics = read(run / "metrics.json")
    for when, found in (("before", before), ("after", after)):
        ours = metrics["forget"][f"accuracy_{when}"], metrics["preserve"][f"accuracy_{when}"]
        counts = [len([*(IMAGES / name).iterdir()]) for name in kept]
        others = np.average([found[name] for name in kept], weights=counts)
        assert (found[FORGET], others) == pytest.approx(ours, abs=1e-6)
    assert before[FORGET] > 0.9 > 0.1 > after[FORGET]
