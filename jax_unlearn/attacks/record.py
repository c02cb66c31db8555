"""attacks.json: what was measured of a run, and the form in which it is read again."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from jax_unlearn.runtime.digests import read_sealed
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.forms import Scalar, fits

FILE = "attacks.json"
# Attacks whose rows have numbers of images and steps, which the report draws.
RELEARNING = ("relearning", "relearning_merger")


class Of(TypedDict):
    """What was attacked, and how."""

    version: str
    adapter: str
    budget: str
    seeds: int


class Strongest(TypedDict):
    """The setting where an attack gains most."""

    setting: dict[str, Scalar]
    edited: dict[str, float]
    controls: dict[str, dict[str, float]]


class Row(TypedDict):
    """One measurement; attacks add metrics and settings of their own."""

    subject: str
    setting: dict[str, Scalar]
    seed: int
    true_positive_rate: NotRequired[float]
    false_positive_rate: NotRequired[float | None]
    balanced: NotRequired[float]
    auc: NotRequired[float]
    steps: NotRequired[int]
    still_rising: NotRequired[bool]


class Measured(TypedDict):
    """An attack."""

    does: str
    budget: str
    controls: dict[str, str]
    left_out: list[str]
    trials: int
    done: list[str]
    seconds: float
    rows: list[dict[str, Any]]
    strongest: Strongest | None
    says_nothing: list[str]


class Record(TypedDict):
    """The content of attacks.json, without its digest."""

    of: Of
    optimised_against: str
    limits: list[str]
    attacks: dict[str, Measured]
    not_run: dict[str, str]
    images: NotRequired[dict[str, dict[str, int]]]


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """attacks.json of a run; None if the run was not attacked.

    Raises:
        UserError: the file was changed, or has another form than this version reads.
    """
    path = run_dir / FILE
    if not path.is_file():
        return None
    content = read_sealed(path)
    if not fits(content, Record) or not all(map(_is_whole, content["attacks"].items())):
        raise UserError(
            f"{path}: has another form than this version reads; delete it and attack again"
        )
    return content


def _is_whole(item: tuple[str, dict[str, Any]]) -> bool:
    """Whether the rows of an attack, and the strongest of them, have what is shown of them."""
    name, found = item
    if not all(fits(row, Row) and _is_measured(row) for row in found["rows"]):
        return False
    best = found["strongest"]
    shown = [] if best is None else [best["edited"], *best["controls"].values()]
    if not all(map(_is_measured, shown)):
        return False
    if name not in RELEARNING:
        return True
    settings = [row["setting"] for row in found["rows"]] + ([best["setting"]] if best else [])
    return all(type(setting.get("images")) is int for setting in settings) and all(
        "steps" in row and "true_positive_rate" in row for row in found["rows"]
    )


def _is_measured(row: dict[str, Any]) -> bool:
    return any(row.get(name) is not None for name in ("balanced", "auc", "true_positive_rate"))
