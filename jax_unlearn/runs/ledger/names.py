"""Names through CLIP's text encoder, for the store of a ledger."""

import hashlib
from collections.abc import Sequence

import numpy as np
from rich.console import Console

from jax_unlearn.data.dataset import SampleSettings
from jax_unlearn.data.prompts import Prompt, prompts, read_names
from jax_unlearn.features.clip_encoder import TEXT, ClipEncoder
from jax_unlearn.runs.fingerprint import digest
from jax_unlearn.runs.ledger.passes import Start
from jax_unlearn.runs.ledger.requests import Ledger, Request
from jax_unlearn.runs.ledger.store import StoredImages, StoredTower
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.sources.open_encoder import open_clip_encoder
from jax_unlearn.runtime.errors import UserError


def begin_names(config: RunConfig, console: Console) -> Start:
    """Encode the names to preserve.

    Raises:
        UserError: a name occurs twice, or the checkpoint or a template is refused.
    """
    samples = config.samples
    encoder = open_clip_encoder(samples.checkpoint, config.extraction.dtype, console)
    encoder.check_reads(names=True, images=False)
    names = read_names(samples.preserve_text, "--preserve-text", encoder.key)
    rows = encoded(encoder, names, samples)
    projection = encoder.projection(TEXT)
    blank = projection.output(encoder.text_taps([""]))[0]
    tower = StoredTower((projection,), {TEXT: blank})
    return Start(rows, tower, digest(encoder.contents()), [])


def of_names(ledger: Ledger, concept: str, given: Sequence[str], console: Console) -> Request:
    """A request for names that are not among those to preserve.

    Raises:
        UserError: a name occurs twice or is to be preserved too, or the checkpoint is not the one
            that the ledger began with.
    """
    config = ledger.config
    encoder = open_clip_encoder(config.samples.checkpoint, config.extraction.dtype, console)
    encoder.check_reads(names=True, images=False)
    names = read_names(given, "--text", encoder.key)
    kept = {encoder.key(name): name for name in ledger.preserve.labels}
    for name in names:
        if (other := kept.get(encoder.key(name))) is not None:
            raise UserError(
                f"--text {name}: is among the names to preserve, as {other}; leave out --text to "
                "forget names to preserve"
            )
    ledger.check_contents(digest(encoder.contents()))
    return Request(concept, encoded(encoder, names, config.samples))


def encoded(encoder: ClipEncoder, names: Sequence[str], samples: SampleSettings) -> StoredImages:
    """The names in each template: those of training, and that of evaluation held out.

    Raises:
        UserError: a template does not have exactly one {}, or a text is too long.
    """
    train = prompts(names, samples.train_templates)
    test = prompts(names, [samples.template])
    every = [*train, *test]
    rows = encoder.texts(every).taps[TEXT].x
    held_out = [False] * len(train) + [True] * len(test)
    keys = [key_of(*one) for one in zip(every, held_out, strict=True)]
    made = StoredImages(
        np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32),
        np.array(held_out),
        tuple(one.label for one in every),
        tuple(one.text for one in every),
        {TEXT: rows},
        texts=True,
    )
    return made.take(sorted(range(len(keys)), key=keys.__getitem__))


def key_of(prompt: Prompt, held_out: bool) -> bytes:
    """SHA-256 of a prompt and of whether it is held out, as one text may be both."""
    return hashlib.sha256(bytes([held_out]) + prompt.digest).digest()
