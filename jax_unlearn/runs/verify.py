"""The command verify: recompute the digests of a certificate, and a sample of its figures."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import Positional

import porting
from jax_unlearn.data.scan import printable
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.evaluate.vlm.asking import ask
from jax_unlearn.evaluate.vlm.matching import normal
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.samples import images
from jax_unlearn.runs.certificate import FORM
from jax_unlearn.runs.commands import extracted_again
from jax_unlearn.runs.evidence import (
    Facts,
    base_linears,
    checkpoint_files,
    digests_of,
    edited_tensors,
    run_files,
    sample_facts,
)
from jax_unlearn.runs.exam import loaded
from jax_unlearn.runs.settings.checks import refuse_unused
from jax_unlearn.runs.settings.config import RunConfig, config_of
from jax_unlearn.runtime.digests import DIGEST, of_text, to_text
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.outputs import ADAPTER, ANSWERS, CERTIFICATE
from jax_unlearn.runtime.text_files import read_json
from jax_unlearn.runtime.used_if import used_if
from jax_unlearn.runtime.version import VERSION

# The entries of metrics.json that are computed again.
RECOMPUTED = ("forget", "refitted", "preserve", "chance", "zero_shot", "paths")


@dataclass(frozen=True)
class Verify:
    """Recompute a certificate's digests and a sample of its figures; exit code 1 if one differs."""

    run: Positional[Path]
    """Directory of a run with certificate.json."""
    digest: str | None = None
    """Digest of the certificate that `certify` printed, to show that this is that certificate."""
    checkpoint: Path | None = None
    """Where the run's checkpoint is now, if it was moved."""
    figures: bool = True
    """Also compute probes and drift again, or zero-shot accuracy; otherwise only digests."""
    ask: int = 0
    """Answers of answers.jsonl, evenly spread, that the model is asked for again (needs torch)."""
    tolerance: float = used_if(0.02, figures=True)
    """Largest difference of a figure that is computed again, all of which are shares or ratios."""
    json: bool = False
    """Print JSON."""


@dataclass
class Verification:
    """The outcome: what is as certified, the figures that were recomputed, and what differs.

    Attributes:
        same: what is as certified, in words.
        recomputed: (certified, now) by figure.
        asked: number of answers that the model was asked for again.
        differences: what differs, in words.
    """

    same: list[str] = field(default_factory=list)
    recomputed: dict[str, tuple[float, float]] = field(default_factory=dict)
    asked: int = 0
    differences: list[str] = field(default_factory=list)

    def as_json(self) -> Facts:
        return asdict(self) | {"verified": not self.differences}

    def compare(self, what: str, then: Mapping[str, str], now: Mapping[str, str]) -> bool:
        """Compare digests by name; whether all are equal."""
        found = [
            *(f"{name}: is missing" for name in sorted(set(then) - set(now))),
            *(f"{name}: is new" for name in sorted(set(now) - set(then))),
            *(f"{name}: has changed" for name in then if now.get(name, then[name]) != then[name]),
        ]
        self.differences += [f"{what}: {one}" for one in found]
        if not found:
            self.same.append(f"{what}: {len(then)} as certified")
        return not found


def verify(command: Verify, console: Console) -> Verification:
    """Compare a run, its checkpoint and its samples with its certificate.

    Raises:
        UserError: there is no certificate, or it is of another form.
    """
    refuse_unused(command, {"figures": command.figures}, Verify(command.run))
    if command.ask < 0:
        raise UserError(f"--ask {command.ask}: must be at least 0")
    found = Verification()
    certificate = read_certificate(command, found)
    config = config_of(certificate["settings"])
    if command.checkpoint is not None:
        config = config.replace(checkpoint=command.checkpoint)
    files = found.compare("run", certificate["run_files"], run_files(command.run))
    with console.status("Digests of the checkpoint"):
        base = compare_checkpoint(certificate["checkpoint"], config, found)
    if base and not any(one.startswith(f"run: {ADAPTER}/") for one in found.differences):
        edited = edited_tensors(command.run, config.samples.checkpoint)
        found.compare("edited tensors", certificate["edited"], edited)
    with console.status("Digests of the samples"):
        samples = compare_samples(certificate["samples"], config, found)
    compare_files("questions", certificate["questions"], found)
    if not command.figures and not command.ask:
        return found
    if not (files and base and samples):
        found.differences.append(
            "figures: were not computed again, since what they are computed from differs"
        )
        return found
    with console.status("Computing figures again"):
        extracted = features_again(command, config, certificate, console)
        if command.figures:
            compare_figures(command, config, certificate, extracted, found)
    if command.ask:
        compare_answers(command, config, certificate, extracted, found, console)
    return found


def read_certificate(command: Verify, found: Verification) -> Facts:
    """The certificate; a broken seal is a difference.

    Raises:
        UserError: it cannot be read, or is of another form.
    """
    path = command.run / CERTIFICATE
    if not path.is_file():
        raise UserError(f"{path}: no such file; write it with `jax-unlearn certify {command.run}`")
    try:
        content = dict(read_json(path))
        digest = str(content.pop(DIGEST))
        form = content.get("form")
        sealed = of_text(to_text(content)) == digest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); certify again") from error
    if form != FORM or not is_certificate(content):
        raise UserError(
            f"{path}: has another form than version {VERSION} reads; use the version that wrote "
            "it, or certify again"
        )
    if not sealed:
        found.differences.append(f"{CERTIFICATE}: has changed since it was written")
    else:
        found.same.append(f"{CERTIFICATE}: SHA-256 {digest}")
    if command.digest is not None and digest != command.digest.strip().lower():
        found.differences.append(f"{CERTIFICATE}: its digest {digest} is not that of --digest")
    return content


def is_certificate(content: Facts) -> bool:
    """Whether what is read of a certificate has the form in which it is written."""

    def digests(part: Any) -> bool:
        return isinstance(part, dict) and all(isinstance(one, str) for one in part.values())

    try:
        config_of(content["settings"])
        named = [content[name] for name in ("run_files", "edited", "questions")]
        named += [content["checkpoint"][name] for name in ("linears", "files")]
        groups = metrics_in(content)
        return all(map(digests, [*named, content["samples"]["files"]])) and isinstance(
            groups["samples"]["fingerprint"], str
        )
    except (KeyError, TypeError, AttributeError):
        return False


def compare_checkpoint(then: Facts, config: RunConfig, found: Verification) -> bool:
    """Compare the adapted Linears and the files; whether the Linears are as certified."""
    checkpoint = config.samples.checkpoint
    try:
        now = base_linears(checkpoint, then["linears"])
    except UserError as error:
        found.differences.append(f"checkpoint: {error}")
        now = {}
    if now is None:
        found.differences.append(f"checkpoint: {checkpoint} is not here; give --checkpoint")
        return False
    same = bool(now) and found.compare("adapted Linears", then["linears"], now)
    if then["files"]:
        found.compare("checkpoint", then["files"], checkpoint_files(checkpoint))
    return same


def compare_samples(then: Facts, config: RunConfig, found: Verification) -> bool:
    """Compare the files of the samples, and whether the folders hold the same ones."""
    if "note" in then:
        found.same.append(f"samples: not checked: {then['note']}")
    same = compare_files("samples", then["files"], found)
    if not same or "fingerprint" not in then:
        return same
    try:
        now = sample_facts(config)
    except UserError as error:
        found.differences.append(f"samples: {error}")
        return False
    if "fingerprint" not in now:
        # The certificate's settings and samples are of two different runs.
        found.differences.append(f"samples: cannot be compared: {now['note']}")
        return False
    new = sorted(set(now["files"]) - set(then["files"]))
    found.differences += [f"samples: {name}: is new" for name in new]
    if not new and now["fingerprint"] != then["fingerprint"]:
        found.differences.append("samples: the folders give other groups than certified")
    return not new and now["fingerprint"] == then["fingerprint"]


def compare_files(what: str, then: Mapping[str, str], found: Verification) -> bool:
    """Compare files by their certified paths."""
    here = [Path(path) for path in then if Path(path).is_file()]
    return found.compare(what, then, digests_of(here)) if then else True


def metrics_in(certificate: Facts) -> Facts:
    """The content of metrics.json."""
    groups = [one["values"] for one in certificate["figures"] if one["file"] == "metrics.json"]
    return {name: value for values in groups for name, value in values.items()}


def features_again(
    command: Verify, config: RunConfig, certificate: Facts, console: Console
) -> Extracted:
    """The run's features, from its statistics or by another pass over its samples."""
    fingerprint = metrics_in(certificate)["samples"]["fingerprint"]
    return extracted_again(command.run, config, fingerprint, {}, console)


def compare_figures(
    command: Verify,
    config: RunConfig,
    certificate: Facts,
    extracted: Extracted,
    found: Verification,
) -> None:
    """Evaluate the adapter again, and compare."""
    metrics = metrics_in(certificate)
    adapter = porting.load_peft(command.run / ADAPTER)
    again = judge_of(extracted, config.samples).evaluate(adapter)
    then = dict(numbers({name: metrics[name] for name in RECOMPUTED if name in metrics}))
    now = dict(numbers({name: again[name] for name in RECOMPUTED if name in again}))
    found.recomputed = {name: (then[name], now[name]) for name in then if name in now}
    missing = sorted(set(then) ^ set(now))
    found.differences += [f"figures: {name} is in one of both only" for name in missing]
    found.differences += [
        f"figures: {name} was {one:.4f} and is {other:.4f}"
        for name, (one, other) in found.recomputed.items()
        if not abs(one - other) <= command.tolerance
    ]


def compare_answers(
    command: Verify,
    config: RunConfig,
    certificate: Facts,
    extracted: Extracted,
    found: Verification,
    console: Console,
) -> None:
    """Ask the edited model for some of the answers again, and compare.

    Raises:
        UserError: the run has no answers, or torch is not installed.
    """
    path = command.run / ANSWERS
    if not path.is_file():
        raise UserError(
            f"--ask: {path} is not there; run `jax-unlearn evaluate {command.run} --vlm` and "
            "certify again"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = rows[:: max(1, len(rows) // command.ask)][: command.ask]
    test = extracted.test
    files = {file.name: file for file in (*images(test.forget), *images(test.preserve))}
    how = metrics_in(certificate)["vlm"]["asked_with"]
    vlm = loaded(command.run, config, AskSettings(dtype=how["dtype"]), console)
    for row in chosen:
        asked = [files[row["image"]]], row["question"]
        (reply,) = ask(vlm, *asked, max_new_tokens=how["max_new_tokens"])
        found.asked += 1
        if normal(reply) != normal(row["after"]["reply"]):
            found.differences.append(
                f"answer about {row['image']} to “{row['question']}” was "
                f"“{row['after']['reply']}” and is “{reply}”"
            )


def numbers(part: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a tree of JSON, by their place."""
    if isinstance(part, Mapping):
        for key, value in part.items():
            yield from numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(part, int | float) and not isinstance(part, bool):
        yield name, float(part)


def show_verification(found: Verification, command: Verify) -> None:
    """Print the outcome."""
    if command.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print("\n".join(map(printable, told(found, command.tolerance))))


def told(found: Verification, tolerance: float) -> Iterator[str]:
    """The outcome in words."""
    yield from found.same
    if found.recomputed:
        names = sorted({name.partition(".")[0] for name in found.recomputed})
        worst = max(abs(then - now) for then, now in found.recomputed.values())
        yield (
            f"figures: {len(found.recomputed)} computed again ({', '.join(names)}), the largest "
            f"difference {worst:.2g}; tolerance {tolerance:g}"
        )
    if found.asked:
        yield f"answers: the model was asked for {found.asked} again"
    yield from (f"differs: {one}" for one in found.differences)
    count = len(found.differences)
    yield "verified" if not count else f"{count} difference{'s' if count > 1 else ''}"
