"""The command certify: write what a run is made of, and what it shows, as certificate.json."""

import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from jax_unlearn.attacks.record import FILE as FILE_OF_ATTACKS
from jax_unlearn.attacks.record import read_record
from jax_unlearn.data.scan import printable
from jax_unlearn.features.statistics_file import FILE, read_statistics
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.evidence import (
    Facts,
    base_linears,
    checkpoint_files,
    edited_tensors,
    question_files,
    run_files,
    sample_facts,
)
from jax_unlearn.runs.report.page import percent
from jax_unlearn.runs.run_directory import Metrics, check_run
from jax_unlearn.runs.settings.config import RunConfig, read_config, to_json
from jax_unlearn.runs.terminal import few_shot
from jax_unlearn.runtime.atomic_files import replace_files
from jax_unlearn.runtime.digests import DIGEST, read_sealed, sealed
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.outputs import CERTIFICATE
from jax_unlearn.runtime.text_files import encodable, read_json

# Form of the file; raised when a field changes its meaning.
FORM = 1
PACKAGES = ("jax-unlearn", "jax", "flax", "numpy", "transformers", "torch", "peft")
# The entries of metrics.json, by the command that gives them; the others are those of `run`.
OF_MODEL = {
    "vlm": "jax-unlearn evaluate {run} --vlm{questions}",
    "benchmark": "jax-unlearn evaluate {run} --vlm{questions}",
}
OF_EVALUATE = (
    "forget", "refitted", "preserve", "paths", "neighbours", "chance", "zero_shot",
    "reidentification", "drift_by_class", "warnings",
)  # fmt: skip
# Which readers the fit optimises against, by solver.
OPTIMISED = {
    STAND_IN: "The fit matched means and covariances with those of the stand-in images; readers of "
    "other statistics were not optimised against.",
    "leace": "The fit removed what linear readers of the fitted images' embeddings can use; other "
    "readers were not optimised against.",
    "closed_form": "The fit moved the embeddings towards their target; no reader that is fitted "
    "after the edit was optimised against.",
}


@dataclass(frozen=True)
class Certify:
    """Write certificate.json: digests, settings, figures with their commands, the threat model."""

    run: Positional[Path]
    """Directory of a run."""
    checkpoint: Path | None = None
    """Where the run's checkpoint is now, if it was moved."""
    whole_checkpoint: bool = True
    """Also digest every file of the checkpoint, a few seconds for each GB; otherwise only the
    adapted Linears."""


def certify(command: Certify, console: Console) -> str:
    """Write the certificate of a run that is intact; returns its digest.

    Raises:
        UserError: a file of the run, its checkpoint or its images are missing or have changed.
    """
    run, config = command.run, read_config(command.run)
    if command.checkpoint is not None:
        config = config.replace(checkpoint=command.checkpoint)
    adapter = check_run(run, config)
    metrics = read_sealed(run / "metrics.json")
    if (run / FILE).is_file():
        # Refuses a file that has changed.
        read_statistics(run)
    checkpoint = config.samples.checkpoint
    with console.status("Digests of the images"):
        samples = sample_facts(config)
    recorded = metrics["samples"]["fingerprint"]
    if samples.get("fingerprint", recorded) != recorded:
        raise UserError(f"{run}: its samples or its seed have changed since; run again")
    linears = base_linears(checkpoint, adapter.pairs)
    if linears is None:
        raise UserError(f"{checkpoint}: is not here; give --checkpoint")
    with console.status("Digests of the checkpoint"):
        files = checkpoint_files(checkpoint) if command.whole_checkpoint else {}
    asked = [Path(path) for path in questions_of(metrics) if path]
    files_of_run = run_files(run)
    content = {
        "form": FORM,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "settings": to_json(config),
        "run_files": files_of_run,
        "checkpoint": {"name": str(checkpoint), "linears": linears, "files": files},
        "edited": edited_tensors(run, checkpoint),
        "statistics": files_of_run.get(FILE),
        "samples": samples,
        "questions": question_files(config.samples.questions, *asked),
        "figures": figures(run, config, metrics),
        "threat_model": threat_model(metrics),
    }
    text = encodable(sealed(content))
    replace_files(run, {CERTIFICATE: text})
    return str(read_json(run / CERTIFICATE)[DIGEST])


def show_digest(command: Certify, digest: str) -> None:
    """Print where the certificate is, and its digest."""
    print(printable(f"{command.run / CERTIFICATE}: SHA-256 {digest}"))
    print("keep this digest in another place, for `verify --digest`", file=sys.stderr)


def versions() -> dict[str, str]:
    """Versions of Python, the system, and the packages that are installed."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # An extra that is not installed, and was not used.
            continue
    return found


def questions_of(metrics: Metrics) -> list[str | None]:
    """The files of the questions that were asked."""
    asked = [metrics[name] for name in OF_MODEL if name in metrics]
    return [one.get("questions", one.get("path")) for one in asked]


def figures(run: Path, config: RunConfig, metrics: Metrics) -> list[Facts]:
    """Every figure, with the command that gives it."""
    made = f"jax-unlearn run --config {run / 'config.json'} --out OUT"
    # One that was fitted again with --statistics has settings of its own.
    solved = config.samples.statistics == config.execution.out
    if (ledger := metrics.get("ledger")) and solved:
        how = f"--combine {ledger['combine']}"
        if ledger["rank_after"] is not None:
            how += f" --rank-after {ledger['rank_after']}"
        # Runs of earlier versions have no such entry.
        how += " --equal" * ledger.get("equal", False) + " --steps" * ("steps" in ledger)
        made = f"jax-unlearn ledger solve {ledger['directory']} {how} --out OUT"
    groups: dict[str, Metrics] = {
        made: {},
        f"jax-unlearn evaluate {run}": {},
    }
    of_run, of_evaluate = groups.values()
    for name, value in metrics.items():
        if name in OF_MODEL:
            path = value.get("questions", value.get("path"))
            questions = f" --questions {path}" if path else ""
            command = OF_MODEL[name].format(run=run, questions=questions)
            groups.setdefault(command, {})[name] = value
        else:
            (of_evaluate if name in OF_EVALUATE else of_run)[name] = value
    found = [{"command": c, "file": "metrics.json", "values": v} for c, v in groups.items()]
    if (values := read_record(run)) is not None:
        command = f"jax-unlearn attack {run}"
        found.append({"command": command, "file": FILE_OF_ATTACKS, "values": values})
    return found


def threat_model(metrics: Metrics) -> dict[str, list[str]]:
    """In words: what is hidden, what can still be read, and what this is no protection from."""
    return {
        "hidden": hidden(metrics),
        "can_be_read": readable(metrics),
        "no_protection_from": [
            "Reloading the original projector restores the concept: any edit of open weights is "
            "undone by it.",
            "Training the projector again with images of the concept brings it back in a few "
            "steps; training the language model may, with enough images. attacks.json, if the run "
            "has one, says how fast.",
            "Text: what the language model knows about the concept by its name is not changed.",
            "Other copies: the base model, and models made from it, still show the concept.",
        ],
        "digests": [
            "They show whether something changed since the certificate was written. They are no "
            "signature: who can write the files can write another certificate. Keep the digest "
            "that `certify` printed in another place, and give it to `verify --digest`."
        ],
    }


def hidden(metrics: Metrics) -> list[str]:
    """What the edit hides, with the run's own figures."""
    found = []
    for before, after in zip(*(named(metrics, when) for when in ("before", "after")), strict=True):
        found.append(
            f"The model's answer to “{before['question']}” names the concept in "
            f"{percent(before['share'])} of the held-out images before the edit and in "
            f"{percent(after['share'])} after; a guess in {percent(before['chance'])}."
        )
    forget = metrics["forget"]
    probe = "A linear probe that was fitted on the unedited embeddings, as the language model was,"
    reader = "Zero-shot classification" if "zero_shot" in metrics else probe
    found.append(
        f"{reader} finds it in {percent(forget['accuracy_before'])} before and "
        f"{percent(forget['accuracy_after'])} after; a guess in {percent(forget['chance'])}."
    )
    return found


def named(metrics: Metrics, when: str) -> list[Metrics]:
    return list(metrics["vlm"][when]["named"]) if "vlm" in metrics else []


def readable(metrics: Metrics) -> list[str]:
    """What can still be read from the edited embeddings, with the run's own figures."""
    found = []
    if "refitted" in metrics:
        share = percent(metrics["refitted"]["accuracy_after"])
        found.append(
            f"A linear probe that is fitted on the edited embeddings, with labels, finds it in "
            f"{share} of the held-out images."
        )
    for one in metrics.get("reidentification", ()):
        if read := few_shot(one):
            count, before, after = read
            found.append(
                f"With {count} labelled images of “{one['concept']}” and of “{one['counterpart']}” "
                f"a reader distinguishes them with accuracy {before:.2f} before and "
                f"{after:.2f} after; 0.50 is a guess."
            )
    found.append(OPTIMISED.get(metrics["optimizer"], OPTIMISED["closed_form"]))
    return found
