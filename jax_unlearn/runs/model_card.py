"""The model card of an export: README.md with the Hub's metadata, figures and limits."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_unlearn.models.clip.model import LINEARS as PROJECTIONS
from jax_unlearn.runs.clients import facts
from jax_unlearn.runs.report.page import concept
from jax_unlearn.runs.report.verdict import percent
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.terminal import summary
from jax_unlearn.runtime.atomic_files import replace_files
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import cached_checkpoint
from jax_unlearn.runtime.text_files import encodable
from jax_unlearn.runtime.version import VERSION
from porting.peft import base_of

CARD = "README.md"
# What an adapter's card takes over from that of its base.
OF_BASE = ("license", "license_name", "license_link", "language")
TAGS = ("jax-unlearn", "unlearning", "vision")


def adapter_card(config: RunConfig, metrics: Metrics, base: str, checkpoint: Path) -> str:
    """The card of an adapter directory.

    Args:
        config: settings of the run.
        metrics: content of its metrics.json.
        base: name of the base in the adapter's config.
        checkpoint: directory of the base, whose card's licence is named; it need not exist. If its
            card cannot be read, a warning says so.
    """
    try:
        of_base = base_metadata(checkpoint)
    except UserError as error:
        # A run must not fail at its end for want of the base's licence.
        warnings.warn(f"{error}; the adapter's card names no licence", stacklevel=2)
        of_base = {}
    known = {name: value for name, value in of_base.items() if name in OF_BASE}
    data = known | {"library_name": "peft", "tags": ["lora", *TAGS]} | base_fields(base, "adapter")
    kind = f"A LoRA adapter for `{base}`"
    return page(data, kind, "peft", config, metrics)


def merged_card(config: RunConfig, metrics: Metrics, base: str, checkpoint: Path) -> str:
    """The card of a merged checkpoint, before the text of its base's card, whose metadata are kept.

    Args: as of `adapter_card`.

    Raises:
        UserError: the metadata of the base's card cannot be read.
    """
    # Without the base's own results, which do not hold for the copy.
    known = {k: v for k, v in base_metadata(checkpoint).items() if k != "model-index"}
    tags = [*(known.get("tags") or ()), *TAGS]
    data = known | {"tags": list(dict.fromkeys(tags))} | base_fields(base, "finetune")
    text = page(data, f"A copy of `{base}`", "merged", config, metrics)
    below = base_text(checkpoint)
    return f"{text}\n---\n\n*The card of the base model follows.*\n\n{below}" if below else text


def write_card(run: Path, config: RunConfig, metrics: Metrics) -> None:
    """Write or renew the card of a run's adapter."""
    adapter_dir = run / "adapter"
    checkpoint = cached_checkpoint(config.samples.checkpoint)
    card = adapter_card(config, metrics, base_of(adapter_dir), checkpoint)
    replace_files(adapter_dir, {CARD: card})


def base_fields(base: str, relation: str) -> dict[str, str]:
    """The Hub's fields for the base, if its name is that of a repository."""
    is_repository = base.count("/") == 1 and not base.startswith((".", "/"))
    return {"base_model": base, "base_model_relation": relation} if is_repository else {}


def base_metadata(checkpoint: Path) -> dict[str, Any]:
    """The metadata of a checkpoint's card; empty without a card."""
    path = checkpoint / CARD
    if not path.is_file():
        return {}
    # Imported here, since only an export needs it.
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return dict(metadata_load(path) or {})
    except (ValueError, YAMLError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"{path}: its metadata, which hold the licence, cannot be read ({text}); repair the "
            "part between the two lines ---, or remove the file"
        ) from error


def base_text(checkpoint: Path) -> str:
    """The text of a checkpoint's card without its metadata; "" without a card."""
    path = checkpoint / CARD
    if not path.is_file():
        return ""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    text = path.read_text(encoding="utf-8", errors="replace")
    found = REGEX_YAML_BLOCK.search(text)
    return (text[found.end() :] if found else text).lstrip()


def page(data: Mapping[str, Any], kind: str, form: str, config: RunConfig, metrics: Metrics) -> str:
    """The metadata and the text of a card; `kind` begins its first sentence."""
    # Not ModelCard, which imports the hub's client.
    from huggingface_hub import ModelCardData

    fitted, name = metrics["adapter"], concept(config, metrics)
    where = [*facts(form, is_of_clip(metrics)), *of_bias(form, metrics)]
    lines = [
        f"# Forgets “{name}”",
        f"{kind}, changed so that the model stops naming “{name}” in what it sees. Made with "
        f"jax-unlearn {VERSION}: a change of rank {fitted['rank']} (alpha {fitted['alpha']:g}) of "
        f"{', '.join(f'`{linear}`' for linear in fitted['targets'])}, solver "
        f"`{metrics['optimizer']}`, seed {config.solver.seed}.",
        "## Measured",
        table(metrics),
        "## Limits",
        *limits(metrics),
        "## Where it acts",
        "\n".join(f"* {line}." for line in where),
        "`jax-unlearn compare BASE RESULT IMAGE…` measures whether the edit is in what is served.",
    ]
    text = "\n\n".join(lines)
    return encodable(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{text}") + "\n"


def of_bias(form: str, metrics: Metrics) -> list[str]:
    """A line for an adapter with a bias (LEACE), which one of PEFT's functions loses."""
    if form != "peft" or not metrics["adapter"].get("bias"):
        return []
    return [
        "PEFT's `add_weighted_adapter` drops the bias of this adapter without a word; to combine "
        'it with another one, make both active (`set_adapter(["one", "two"])`), or merge both'
    ]


def is_of_clip(metrics: Metrics) -> bool:
    """Whether a run adapted CLIP."""
    return set(metrics["adapter"]["targets"]) <= set(PROJECTIONS)


def table(metrics: Metrics) -> str:
    """The summary that a run prints, in Markdown."""
    columns = summary(metrics).columns
    rows = [[str(column.header) for column in columns], ["---"] * len(columns)]
    rows += map(list, zip(*(column.cells for column in columns), strict=True))
    return "\n".join(f"| {' | '.join(str(cell).strip() for cell in row)} |" for row in rows)


def limits(metrics: Metrics) -> list[str]:
    """What the edit does not do, with the run's own figures."""
    found = ""
    if refitted := metrics.get("refitted"):
        share = percent(refitted["accuracy_after"])
        found = f" (a probe fitted after the edit still names it in {share} of the held-out images)"
    lines = [
        "* **Hidden, not erased.** Even where the model does not name the concept, the image "
        f"embeddings still hold it{found}.",
        "* **Renamed.** The model tends to answer with a similar class that was kept.",
        "* **Not against intent.** Whoever has the base model has the concept back.",
    ]
    if "vlm" not in metrics and "zero_shot" not in metrics:
        lines.append("* The model's own answers were not measured (`jax-unlearn evaluate --vlm`).")
    return ["\n".join([*lines, *(f"* {warning}." for warning in metrics.get("warnings", ()))])]
