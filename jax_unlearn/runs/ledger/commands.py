"""The commands of a ledger: begin it, add and withdraw requests, list and solve them."""

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from jax_unlearn.data.class_names import FolderNames, matches
from jax_unlearn.data.scan import printable
from jax_unlearn.data.splits import split_held_out
from jax_unlearn.features.requests import LedgerFacts
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.runs.fingerprint import digest
from jax_unlearn.runs.ledger.chain import append, new_entry, read_chain
from jax_unlearn.runs.ledger.fitting import can_be_combined, fitting_of
from jax_unlearn.runs.ledger.mixed import parts, without_image_means
from jax_unlearn.runs.ledger.names import begin_names, of_names
from jax_unlearn.runs.ledger.options import (
    Add,
    Init,
    Solve,
    TowerPass,
    Undo,
    ledger_config,
)
from jax_unlearn.runs.ledger.passes import Folders, begin_images, with_rows, without_rows
from jax_unlearn.runs.ledger.requests import (
    Ledger,
    Request,
    active,
    divide,
    open_ledger,
    recorded,
)
from jax_unlearn.runs.ledger.source import LedgerSource, extracted_of
from jax_unlearn.runs.ledger.steps import check_steps, steps
from jax_unlearn.runs.ledger.store import (
    save_images,
    save_tower,
)
from jax_unlearn.runs.pipeline import prepared_run, run_pipeline
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.saved_statistics import protect
from jax_unlearn.runs.settings.checks import source_of
from jax_unlearn.runs.settings.config import RunConfig, to_json
from jax_unlearn.runs.settings.inputs import check_out
from jax_unlearn.runs.sources.qwen_tower import QwenTower
from jax_unlearn.runs.sources.source import digests_in_checkpoint
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.file_lock import locked
from jax_unlearn.runtime.outputs import check_free, check_output, resolved


def init(command: Init, console: Console) -> list[str]:
    """Create a ledger: run the tower over the images to preserve, once.

    Returns:
        What was left out, in words.

    Raises:
        UserError: bad input, or a setting that has no effect in a ledger.
    """
    directory = command.directory
    config = ledger_config(command)
    samples = config.samples
    check_out(directory, samples, name="the ledger")
    check_free(directory, cure="choose another folder")
    if source_of(samples) == "clip_names":
        started = begin_names(config, console)
    else:
        started = begin_images(config, command.image_means, console)
    with fresh_directory(directory) as partial:
        what = {
            "settings": settings_of(config),
            "linears": digests_in_checkpoint(config, started.tower.linears),
            "contents": started.contents,
            "tower": save_tower(partial, started.tower),
            "preserve": save_images(partial, started.preserve),
            "left_out": started.left_out,
            "image_means": command.image_means,
        }
        append(partial, new_entry("init", what=what), [])
        protect(partial, samples)
    return started.left_out


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that a ledger records, which are those of its runs."""
    how = set(vars(config.execution)) - {"out"}
    return {name: value for name, value in to_json(config).items() if name not in how}


def add(command: Add, console: Console) -> tuple[str, list[str]]:
    """Add a request; the tower runs over its own images alone, and over none that are known.

    Returns:
        The request's id, and what was left out of its folder, in words.

    Raises:
        UserError: bad input, or the request is active already.
    """
    ledger, what = open_ledger(command.directory), dict[str, Any]()
    concept = " ".join(printable(command.concept).split())
    if not concept:
        raise UserError("--concept: is empty; give the words of what is to be forgotten")
    check_kind(command, ledger.preserve.texts)
    if command.images is None:
        for name, value in vars(command.tower).items():
            if value != getattr(TowerPass(), name):
                raise UserError(f"--{name}: has no effect here: no tower is run without --images")
        if command.text:
            request = of_names(ledger, concept, command.text, console)
            names = sorted({*request.images.labels})
            what = {"classes": names, "images": save_images(ledger.directory, request.images)}
            return recorded(ledger.directory, request, what), []
        classes = sorted(matches(concept, ledger.preserve.labels))
        if not classes:
            there = ", ".join(sorted({*ledger.preserve.labels}))
            raise UserError(
                f"--concept {concept}: no class to preserve has these words; give "
                f"{'--text' if ledger.preserve.texts else '--images'}, or words of one of {there}"
            )
        request = Request(concept, ledger.preserve.of_classes(classes))
        what = {"classes": classes, "images": None}
        return recorded(ledger.directory, request, what), []
    folders = Folders(command.tower.strict, FolderNames.read(None))
    request = from_folder(ledger, concept, folders, command, console)
    classes = sorted({*request.images.labels})
    # Before anything of these images is written.
    protect(ledger.directory, ledger.config.samples, [command.images])
    if known := ledger.added(request.id):
        what = {"classes": classes, "images": known.what["images"]}
    else:
        what = {"classes": classes, "images": save_images(ledger.directory, request.images)}
    what |= {"folder": str(resolved(command.images)), "left_out": folders.lines()}
    return recorded(ledger.directory, request, what), folders.lines()


def check_kind(command: Add, texts: bool) -> None:
    """Check that a request is of what the ledger is of: images, or names.

    Raises:
        UserError: it is not.
    """
    if texts and command.images is not None:
        raise UserError("--images: this ledger is of names; give --text, or words of one to keep")
    if command.text and not texts:
        raise UserError("--text: this ledger is of images; give --images, or words of a class")


def from_folder(
    ledger: Ledger, concept: str, folders: Folders, command: Add, console: Console
) -> Request:
    """A request for the images of a folder.

    An image that is among those to preserve keeps its rows, and is held out if it is there; of the
    others a fifth of each class is held out.

    Raises:
        UserError: the folder has too few images, a class that would also be preserved, or the
            checkpoint is not the one that the ledger began with.
    """
    assert command.images is not None
    preserve = ledger.preserve
    files = folders.images(command.images, concept)
    labels = {file.label for file in files}
    if both := sorted(labels & {*preserve.labels}):
        raise UserError(
            f"{command.images}: has a class {both[0]!r}, which is also among those to preserve; "
            "rename its folder, or leave out --images to forget the class to preserve"
        )
    place = {key: i for i, key in enumerate(preserve.keys)}
    means = ledger.facts["image_means"]
    if not means and (known := [one for one in files if one.digest in place]):
        raise UserError(
            f"{known[0].path}: is also among the images to preserve, and a ledger without image "
            "means cannot take a single image out of their sums; remove it, or leave out --images "
            "to forget its class"
        )
    new = [file for file in files if file.digest not in place]
    test = {f.digest for f in split_held_out(new, ledger.config.solver.seed)[1]} if new else set()
    held_out = [
        bool(preserve.held_out[place[one.digest]]) if one.digest in place else one.digest in test
        for one in files
    ]
    if all(held_out) or not any(held_out):
        raise UserError(
            f"{command.images}: has no image to train with, or none to hold out; give more of them"
        )
    images = without_rows(files, held_out)
    if entry := ledger.added(Request(concept, images).id):
        return Request(concept, ledger.images_of(entry))
    if not means:
        parts(images)

    def opened() -> QwenTower:
        tower = QwenTower(ledger.config.replace(**vars(command.tower)))
        ledger.check_contents(digest(tower.contents()))
        return tower

    read = with_rows(images, files, preserve, opened, console)
    return Request(concept, read if means else without_image_means(read))


def undo(command: Undo) -> None:
    """Withdraw a request.

    Raises:
        UserError: no active request has this id.
    """
    directory = command.directory
    # Refuses a directory that is no ledger before a lock is created in it.
    read_chain(directory)
    with locked(directory):
        entries = read_chain(directory)
        if command.id not in (there := active(entries)):
            listed = ", ".join(there) or "none"
            raise UserError(
                f"{directory}: {command.id} is no active request; the active ones: {listed}"
            )
        append(directory, new_entry("undo", command.id, None, entries), entries)


def solve(command: Solve, console: Console) -> Metrics:
    """Fit the active requests: an ordinary run, without an image or a tower.

    Returns:
        The content of the run's metrics.json.

    Raises:
        UserError: the ledger is damaged, or no request is active.
    """
    begun = time.perf_counter()
    if command.combine == "joint" and command.rank_after is not None:
        raise UserError("--rank-after: has no effect here: a joint solve has --rank; leave it out")
    if command.rank_after is not None and command.rank_after < 1:
        raise UserError(f"--rank-after {command.rank_after}: must be at least 1")
    directory, out = command.directory, resolved(command.out)
    ledger = open_ledger(directory)
    facts = facts_of(ledger, command)
    if not can_be_combined(facts, ledger.config):
        raise UserError(
            "--combine joint: with --target stand_in no request can be moved further than the "
            "others; give --equal, or leave it out"
        )
    check_output(out, {"the ledger": [directory]})
    if command.steps:
        check_steps(ledger)
    config = ledger.config.replace(out=out, overwrite=command.overwrite)
    source = LedgerSource(ledger, config, facts)

    def after_steps(adapter: LoraAdapter) -> Metrics:
        return steps(ledger, lambda some: solved(ledger, facts, some), adapter)

    with prepared_run(config, console, config, lambda: source) as prepared:
        measure = after_steps if command.steps else None
        return run_pipeline(prepared, begun, measure, [directory])


def facts_of(ledger: Ledger, command: Solve) -> LedgerFacts:
    """What a run records of its ledger, and of how its requests are combined."""
    return {
        "directory": str(ledger.directory.resolve()),
        "digest": ledger.entries[-1].digest,
        "combine": command.combine,
        "equal": command.equal,
        "rank_after": command.rank_after,
        "image_means": ledger.facts["image_means"],
        "names": ledger.preserve.texts,
    }


def solved(ledger: Ledger, facts: LedgerFacts, some: Sequence[Request]) -> LoraAdapter:
    """The adapter for some requests of a ledger."""
    extracted = extracted_of(divide(some, ledger.preserve), ledger.tower, ledger.config, facts)
    fitting = fitting_of(extracted)
    assert fitting is not None
    quiet = Console(quiet=True)
    return fitting.fit(extracted, ledger.config, quiet, None, None).found.result.adapter
